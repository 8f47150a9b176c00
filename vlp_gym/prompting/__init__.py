"""Vision-language chat models, at an endpoint or local, with cached answers."""

from __future__ import annotations

from vlp_gym.prompting.client import ChatClient as ChatClient
from vlp_gym.prompting.content import Chat as Chat
from vlp_gym.prompting.content import Content as Content
from vlp_gym.prompting.local import LocalChat as LocalChat
from vlp_gym.prompting.parse import Unparsed as Unparsed
from vlp_gym.prompting.spec import open_chat as open_chat
