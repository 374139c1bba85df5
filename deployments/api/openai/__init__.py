"""OpenAI's audio API over the Router: the wire format that clients of OpenAI's speech to text hold.

https://platform.openai.com/docs/api-reference/audio

RunPod's jobs use the modules that know no HTTP: `request.parse` reads fields, `answer.content` and
`stream.messages` write what a client gets, and `errors.body_of` writes failures.
"""
