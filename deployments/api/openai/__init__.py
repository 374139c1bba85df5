"""OpenAI's audio API over the Router: the wire format that clients of OpenAI's speech to text hold.

https://platform.openai.com/docs/api-reference/audio

The modules beside `routes` know no HTTP: `request.parse` reads fields, `answer.render` and
`stream.messages` write what a client gets, `errors.body_of` what it gets of a failure.
"""

from deployments.api.openai.routes import framework_error, routes, serves

__all__ = ["framework_error", "routes", "serves"]
