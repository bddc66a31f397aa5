"""The watermark: what holds it back, what carries it, and that it never reverses."""

from stream.watermark import NO_WATERMARK, PairWatermark, TopicClock


def pair(now_ms: int = 0, *, start_ms: int = NO_WATERMARK) -> PairWatermark:
    clocks = [TopicClock(now_ms, max_ahead_ms=100, idle_ms=1_000) for _ in range(2)]
    return PairWatermark(*clocks, out_of_orderness_ms=500, start_ms=start_ms)


def test_no_watermark_before_both_topics_have_an_event() -> None:
    watermark = pair()
    assert watermark.advance(0) == NO_WATERMARK
    watermark.impressions.observe(10_000, now_ms=10_000)
    assert watermark.advance(10_000) == NO_WATERMARK


def test_the_slower_topic_holds_the_pair_back() -> None:
    watermark = pair()
    watermark.impressions.observe(10_000, now_ms=10_000)
    watermark.feedback.observe(7_000, now_ms=10_000)
    assert watermark.advance(10_000) == 6_500


def test_an_older_event_does_not_move_it_back() -> None:
    watermark = pair()
    for clock in (watermark.impressions, watermark.feedback):
        clock.observe(10_000, now_ms=10_000)
        clock.observe(3_000, now_ms=10_000)
    assert watermark.advance(10_000) == 9_500


def test_it_starts_where_it_was_committed_and_never_falls_below() -> None:
    watermark = pair(start_ms=20_000)
    watermark.impressions.observe(10_000, now_ms=10_000)
    watermark.feedback.observe(10_000, now_ms=10_000)
    assert watermark.advance(10_000) == 20_000


def test_a_clock_ahead_is_clamped_at_the_edge() -> None:
    for event_ms, clamped in ((10_099, False), (10_100, False), (10_101, True)):
        clock = TopicClock(0, max_ahead_ms=100, idle_ms=1_000)
        assert clock.observe(event_ms, now_ms=10_000) is clamped
        assert clock.event_ms == min(event_ms, 10_100)


def test_a_quiet_topic_at_its_end_no_longer_holds_back_from_idle_ms_on() -> None:
    watermark = pair()
    watermark.impressions.observe(1_000, now_ms=1_000)
    watermark.feedback.observe(500, now_ms=1_000)
    watermark.feedback.look(is_at_end=True, now_ms=1_000)
    for now_ms, expected in ((1_999, 0), (2_000, 500), (2_001, 500)):
        watermark.impressions.observe(1_000, now_ms=now_ms)
        assert watermark.advance(now_ms) == expected


def test_a_quiet_topic_with_messages_left_still_holds_back() -> None:
    watermark = pair()
    watermark.impressions.observe(9_000, now_ms=1_000)
    watermark.feedback.look(is_at_end=False, now_ms=5_000)
    assert watermark.advance(9_000) == NO_WATERMARK


def test_a_message_ends_idleness() -> None:
    clock = TopicClock(0, max_ahead_ms=100, idle_ms=1_000)
    clock.look(is_at_end=True, now_ms=1_000)
    assert clock.is_idle(1_000)
    clock.observe(900, now_ms=1_500)
    assert not clock.is_idle(1_500)
    assert not clock.is_idle(9_000), "it was at its end before that message, not necessarily after"


def test_when_both_are_idle_the_processing_clock_carries_it() -> None:
    watermark = pair()
    for clock in (watermark.impressions, watermark.feedback):
        clock.observe(1_000, now_ms=1_000)
        clock.look(is_at_end=True, now_ms=1_000)
    assert watermark.advance(1_999) == 500
    assert watermark.advance(2_000) == 1_500
    assert watermark.advance(90_000) == 89_500


def test_a_quiet_topic_is_looked_at_once_per_idle_ms() -> None:
    clock = TopicClock(0, max_ahead_ms=100, idle_ms=1_000)
    looks = []
    for now_ms in range(0, 4_000, 100):
        if clock.should_look(now_ms):
            looks.append(now_ms)
            clock.look(is_at_end=True, now_ms=now_ms)
    assert looks == [1_000, 2_000, 3_000]
