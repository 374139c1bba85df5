"""Decoding in processes of their own, which can reach nothing but the recording.

FFmpeg's demuxers and decoders are a million lines of C that read whatever strangers send. So each
file is decoded by a process that lives for this file alone, can open nothing, and may use only so
much time and memory:

    Router                     zygote                    decoder, one for each file
    client.Sandbox  ─ control ─►  zygote.Zygote  ─ fork ─►  child.decode
          ▲                                                  reads the input, writes the waveform
          └────────────── reply: warnings or an error ───────┘

The zygote (as in Android and Chromium) has imported all that a decoder needs, so a fork costs
milliseconds where a new interpreter costs 200. The Router itself has threads, so it cannot fork.
"""
