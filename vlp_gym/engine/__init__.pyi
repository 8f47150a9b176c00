from .engine import QueryEngine as QueryEngine
