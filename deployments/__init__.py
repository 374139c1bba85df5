"""OpenAI's Whisper as a Ray Serve application."""
