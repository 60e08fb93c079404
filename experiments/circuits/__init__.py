"""Attribution graphs of prompts with several kinds of dictionaries, and a test of their predictions."""
