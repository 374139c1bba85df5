from deployments.runpod.heartbeat import JobIds, Ping, ping_of

RUNPOD = {
    "RUNPOD_WEBHOOK_PING": "https://example.com/ping/$RUNPOD_POD_ID?gpu=G",
    "RUNPOD_AI_API_KEY": "key",
}


def test_the_ping_is_what_runpods_container_says() -> None:
    url = "https://example.com/ping/pod?gpu=G"
    assert ping_of(RUNPOD, "pod", "1.12.0") == Ping(url, "key", 10.0, "1.12.0")
    often = RUNPOD | {"RUNPOD_PING_INTERVAL": "2500"}
    assert ping_of(often, "pod", "1.12.0") == Ping(url, "key", 2.5, "1.12.0")


def test_outside_of_runpod_there_is_no_ping() -> None:
    for name in RUNPOD:
        assert ping_of(RUNPOD | {name: ""}, "pod", "1.12.0") is None


def test_the_ids_of_the_jobs_in_work_are_shared() -> None:
    ids = JobIds()
    assert ids.get() is None
    ids.set("first,second")
    assert ids.get() == "first,second"
    ids.set("x")
    assert ids.get() == "x"
    ids.set(None)
    assert ids.get() is None


def test_more_ids_than_there_is_room_for_are_cut_between_two_of_them() -> None:
    ids = JobIds()
    ids.set(",".join(f"job-{number:05}" for number in range(10_000)))
    known = (ids.get() or "").split(",")
    assert known == [f"job-{number:05}" for number in range(len(known))]
    assert 6000 < len(known) < 10_000
