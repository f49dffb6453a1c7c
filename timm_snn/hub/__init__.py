"""Models on the Hugging Face Hub: their cards, and how they get there."""

from .push import push_to_hub as push_to_hub
