"""OpenAI's audio API over the Router: the wire format that clients of OpenAI's speech to text hold.

https://platform.openai.com/docs/api-reference/audio
"""

from deployments.api.openai.routes import routes

__all__ = ["routes"]
