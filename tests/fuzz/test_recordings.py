"""Damaged recordings are read or refused by the real decoder; a few of the fuzzer's cases."""

from tests.fuzz.recordings import run


async def test_a_damaged_recording_is_read_or_refused() -> None:
    campaign = await run(1, lambda case: case < 40)
    assert campaign.findings == {}
    assert campaign.ends["decoded"] > 0
    assert campaign.ends["InvalidAudioError"] > 0
