"""One reward model for many environments, processes and machines: `vlp-gym serve`, and the model that asks it."""

from __future__ import annotations

from vlp_gym.serving.remote import RemoteModel as RemoteModel
