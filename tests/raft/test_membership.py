"""Changes of the membership (thesis, chapter 4): learners, one change at a time, in force when appended."""

import pytest
from quorate_core.errors import Conflict, InvalidRequest, NotFound, NotProposed, SettingsError
from quorate_raft.core.configurations import Configurations
from quorate_raft.core.membership import (
    LEARNERS_MAX,
    REMOVED_MAX,
    VOTERS_MAX,
    AddLearner,
    ForgottenMember,
    Member,
    Membership,
    PromoteLearner,
    RemoveMember,
    apply_change,
    decode_membership,
    encode_membership,
)
from quorate_raft.core.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    HeartbeatRequest,
    HeartbeatResponse,
    InstallSnapshot,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from quorate_raft.core.ready import Role
from quorate_raft.core.reconfiguration import PROMOTION_LAG_ENTRIES_MAX
from support.raft_cluster import ELECTION_TICKS, Cluster
from support.raft_scenes import elected, forget_leader, taken, time_out

ABC = Membership.of_voters({"a": "host-a", "b": "host-b", "c": "host-c"})


def with_learner(names: str = "abc", name: str = "d", **limits: int) -> Cluster:
    """A cluster that a leads, with a learner that has caught up."""
    cluster = elected(names, **limits)
    cluster.add(name)
    cluster.change("a", AddLearner(name, "somewhere"))
    settle_with_ticks(cluster)
    return cluster


def settle_with_ticks(cluster: Cluster, ticks: int = 3) -> None:
    cluster.settle()
    for _ in range(ticks):
        cluster.tick()
        cluster.settle()


# Configurations as values


def test_a_member_begins_as_a_learner_and_is_promoted() -> None:
    learning = apply_change(ABC, AddLearner("ba", "host-ba"))
    assert learning.names == ("a", "b", "ba", "c")
    assert (learning.voters, learning.learners) == (("a", "b", "c"), ("ba",))
    assert learning.address_of("ba") == "host-ba"
    promoted = apply_change(learning, PromoteLearner("ba"))
    assert (promoted.voters, promoted.learners) == (("a", "b", "ba", "c"), ())
    assert promoted.address_of("ba") == "host-ba"
    assert promoted.others("b") == ("a", "ba", "c")


def test_who_was_removed_never_comes_back_under_the_same_name() -> None:
    """What it acknowledged in its earlier life could be taken for what it acknowledges in its new one."""
    smaller = apply_change(ABC, RemoveMember("b"))
    assert (smaller.names, smaller.removed) == (("a", "c"), ("b",))
    assert smaller.address_of("b") is None
    with pytest.raises(Conflict, match=r"b was a member and was removed; .* needs a new name"):
        apply_change(smaller, AddLearner("b", "host-b"))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (AddLearner("a", "x"), Conflict, "a is a member already"),
        (AddLearner("", "x"), InvalidRequest, "a member needs a name"),
        (PromoteLearner("a"), Conflict, "a is a voter already"),
        (PromoteLearner("z"), NotFound, "z is no member; there are a, b, c"),
        (RemoveMember("z"), NotFound, "z is no member; there are a, b, c"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(
    change: AddLearner | PromoteLearner | RemoveMember, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        apply_change(ABC, change)


def test_the_last_voter_cannot_be_removed() -> None:
    lone = apply_change(Membership.of_voters("a"), AddLearner("b", ""))
    with pytest.raises(Conflict, match="a is the last voter"):
        apply_change(lone, RemoveMember("a"))


def test_voters_learners_and_the_names_of_the_removed_are_bounded() -> None:
    many = Membership.of_voters([f"v{number}" for number in range(VOTERS_MAX)])
    for number in range(LEARNERS_MAX):
        many = apply_change(many, AddLearner(f"l{number}", ""))
    with pytest.raises(Conflict, match=f"has {LEARNERS_MAX} learners"):
        apply_change(many, AddLearner("one-more", ""))
    with pytest.raises(Conflict, match=f"has {VOTERS_MAX} voters"):
        apply_change(many, PromoteLearner("l0"))
    full = Membership(ABC.members, tuple(f"r{number}" for number in range(REMOVED_MAX)))
    removed = apply_change(full, RemoveMember("a")).removed
    assert (len(removed), removed[0], removed[-1]) == (REMOVED_MAX, "a", f"r{REMOVED_MAX - 2}")


def test_a_configuration_survives_its_encoding() -> None:
    membership = apply_change(apply_change(ABC, AddLearner("d", "host-d")), RemoveMember("b"))
    assert decode_membership(encode_membership(membership)) == membership


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        encode_membership(Membership()),
        encode_membership(Membership((Member("a", "", is_learner=True),))),
        encode_membership(Membership((Member("b"), Member("a")))),
        encode_membership(Membership((Member("a"), Member("a")))),
    ],
    ids=["empty", "noise", "nobody", "learners only", "unsorted", "twice"],
)
def test_what_cannot_be_a_configuration_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_membership(data)


def test_a_cluster_begins_with_members_of_different_names() -> None:
    with pytest.raises(SettingsError, match="name of its own"):
        Membership.of_voters(["a", "a"])
    assert Membership().is_empty
    assert not Membership().is_learner("a")


# The configurations of a log


def test_a_log_remembers_which_configuration_was_in_force_where() -> None:
    known = Configurations(3, ABC)
    smaller = apply_change(ABC, RemoveMember("c"))
    known.add(5, smaller)
    assert [known.at(index) for index in (3, 4, 5, 9)] == [ABC, ABC, smaller, smaller]
    with pytest.raises(NotFound, match="configuration at entry 2 is forgotten; the oldest known is at 3"):
        known.at(2)
    known.settle(5)
    known.forget_before(4)
    assert known.at(4) == ABC
    known.forget_before(5)
    with pytest.raises(NotFound):
        known.at(4)
    assert known.newest == smaller


def test_a_member_stays_in_touch_with_everybody_until_a_removal_is_settled() -> None:
    """Else the log that a new leader cuts back could not be reached by it; and nobody is told that it was removed when
    that may yet be taken back."""
    known = Configurations(0, ABC)
    without_c = apply_change(ABC, RemoveMember("c"))
    known.add(5, without_c)
    assert (known.contacts.names, known.contacts.removed) == (("a", "b", "c"), ())
    with_d = apply_change(without_c, AddLearner("d", "host-d"))
    known.add(6, with_d)
    assert (known.contacts.names, known.contacts.learners) == (("a", "b", "c", "d"), ("d",))
    known.settle(5)
    assert (known.contacts.names, known.contacts.removed) == (("a", "b", "d"), ("c",))
    known.cut_from(6)
    assert known.contacts is known.newest is without_c
    assert known.unsettled_index == 0


def test_cutting_back_to_an_unsettled_configuration_leaves_it_unsettled() -> None:
    known = Configurations(0, ABC)
    known.add(5, apply_change(ABC, AddLearner("d", "")))
    known.add(6, apply_change(ABC, AddLearner("e", "")))
    known.cut_from(6)
    assert (known.unsettled_index, known.newest.learners) == (5, ("d",))
    known.cut_from(5)
    assert (known.unsettled_index, known.newest, known.contacts) == (0, ABC, ABC)


# Adding and promoting


def test_a_learner_gets_everything_and_counts_for_nothing() -> None:
    """Thesis 4.2.1: it neither helps to commit nor is missed."""
    cluster = with_learner("abc")
    assert cluster.members["d"].applied == cluster.members["a"].applied
    assert {cluster[name].membership.learners for name in "abcd"} == {("d",)}
    cluster.partition("ad", "bc")
    index, _ = cluster.propose("a")
    cluster.settle()
    assert cluster.members["d"].entries[-1].index == index
    assert cluster["a"].log.commit_index < index
    cluster.heal()
    cluster.crash("d")
    settle_with_ticks(cluster)
    assert cluster["a"].log.commit_index == index


def test_a_leader_that_only_learners_answer_steps_down() -> None:
    """CheckQuorum counts voters."""
    cluster = with_learner("abc")
    cluster.partition("ad", "bc")
    for _ in range(2 * ELECTION_TICKS):
        cluster.tick("a", "d")
        cluster.settle()
    assert not cluster["a"].is_leader


def test_a_learner_does_not_campaign_and_forgets_a_leader_that_is_gone() -> None:
    cluster = with_learner("abc")
    forget_leader(cluster, "d", "d", "d")
    cluster.tick("d", times=2 * ELECTION_TICKS)
    assert (cluster["d"].standing.role, cluster["d"].standing.leader) == (Role.FOLLOWER, "")
    assert cluster.take(VoteRequest) == []
    cluster["d"].step(HeartbeatRequest("a", "d", 1, 0))
    cluster["d"].step(TimeoutNow("a", "d", 1))
    assert cluster["d"].standing.role is Role.FOLLOWER


def test_a_learner_votes_when_it_is_asked() -> None:
    """Thesis 4.1: the candidate may know that it is a voter already."""
    cluster = with_learner("abc")
    forget_leader(cluster, "d")
    log = cluster["a"].log
    cluster.deliver([VoteRequest("b", "d", 2, log.last_index, log.last_term)])
    assert [answer.granted for answer in taken(cluster, VoteResponse)] == [True]


def test_a_voter_that_does_not_know_of_its_promotion_elects_the_leader_that_does() -> None:
    """Thesis 4.1: of the four voters a is dead and d thinks that it is a learner; b and c need its vote."""
    cluster = with_learner("abc")
    cluster.cut = {("a", "d"), ("d", "a")}
    cluster.change("a", PromoteLearner("d"))
    settle_with_ticks(cluster, 1)
    assert cluster["b"].membership.is_voter("d")
    assert cluster["d"].membership.is_learner("d")
    cluster.crash("a")
    cluster.heal()
    forget_leader(cluster, "c", "d")
    time_out(cluster, "b")
    cluster.settle()
    assert cluster["b"].is_leader
    assert cluster["d"].membership.is_voter("d")


def test_a_promoted_learner_counts() -> None:
    cluster = with_learner("abc")
    cluster.change("a", PromoteLearner("d"))
    settle_with_ticks(cluster)
    assert {cluster[name].membership.voters for name in "abcd"} == {("a", "b", "c", "d")}
    cluster.partition("ab", "cd")
    index, _ = cluster.propose("a")
    cluster.settle()
    assert cluster["a"].log.commit_index == index - 1
    cluster.heal()
    cluster.partition("abd", "c")
    settle_with_ticks(cluster)
    assert cluster["a"].log.commit_index == index


def test_a_learner_that_lags_is_not_promoted() -> None:
    """Thesis 4.2.1: commits would wait for it. The refusal says how much is lacking."""
    cluster = with_learner("abc")
    cluster.partition("abc", "d")
    for _ in range(PROMOTION_LAG_ENTRIES_MAX + 1):
        cluster.propose("a")
    settle_with_ticks(cluster, 1)
    with pytest.raises(Conflict, match=f"d lacks {PROMOTION_LAG_ENTRIES_MAX + 1} entries"):
        cluster.change("a", PromoteLearner("d"))
    cluster.heal()
    settle_with_ticks(cluster)
    cluster.change("a", PromoteLearner("d"))


def test_a_learner_that_does_not_answer_is_not_promoted() -> None:
    """An idle cluster's dead learner lacks nothing; as a second voter it would take the only one's majority away."""
    cluster = with_learner("a")
    cluster.crash("d")
    cluster.tick("a", times=2 * ELECTION_TICKS)
    with pytest.raises(Conflict, match="d does not answer"):
        cluster.change("a", PromoteLearner("d"))


def test_a_single_member_grows_to_three() -> None:
    cluster = elected("a")
    for name in "bc":
        cluster.add(name)
        cluster.change("a", AddLearner(name, ""))
        settle_with_ticks(cluster)
        cluster.change("a", PromoteLearner(name))
        settle_with_ticks(cluster)
    cluster.crash("a")
    forget_leader(cluster, "c")
    time_out(cluster, "b")
    cluster.settle()
    assert cluster["b"].is_leader
    assert cluster.members["c"].applied == cluster.members["b"].applied


def test_a_member_that_joins_waits_and_disturbs_nobody() -> None:
    cluster = elected("abc")
    cluster.add("d")
    cluster.tick("d", times=5 * ELECTION_TICKS)
    assert cluster.take() == []
    assert cluster["d"].membership.is_empty
    assert cluster["d"].contacts.is_empty


def test_a_voter_that_forgot_everything_votes_for_nobody_and_confirms_no_read() -> None:
    """It could elect a leader without what it acknowledged, or confirm one that it helped to depose."""
    cluster = elected("abc")
    cluster.add("d")
    cluster.deliver([VoteRequest("c", "d", 9, 100, 8), VoteRequest("c", "d", 9, 100, 8, pre=True)])
    assert [answer.granted for answer in cluster.take(VoteResponse)] == [False, False]
    cluster.deliver([HeartbeatRequest("c", "d", 9, 0, read_context=7)])
    assert [answer.read_context for answer in cluster.take(HeartbeatResponse)] == [0]


def test_a_member_that_forgot_what_its_leader_knows_it_to_have_stops() -> None:
    """A heartbeat's commit index is never above what the receiver has acknowledged."""
    cluster = elected("abc")
    cluster.add("d")
    with pytest.raises(ForgottenMember, match="must not vote"):
        cluster["d"].step(HeartbeatRequest("a", "d", 1, 1))


def test_a_voter_that_forgot_everything_learns_it_from_the_first_snapshot() -> None:
    """A new leader knows nothing of what it acknowledged, and sends it one as if it joined. Were it to go on, it could
    help a leader of an older term than one that it has voted in: c elects b in term 2, forgets, and hears from a."""
    cluster = elected("abc")
    cluster.partition("a", "bc")
    forget_leader(cluster, "b", "c")
    time_out(cluster, "b")
    cluster.settle()
    assert cluster["b"].standing.term == 2
    cluster.partition("ac", "b")
    cluster.add("c")
    with pytest.raises(ForgottenMember, match="c is a member of this cluster already, and its log is gone"):
        cluster["c"].step(InstallSnapshot("a", "c", 1, cluster.take_snapshot("a")))


def test_a_learner_that_has_taken_nothing_over_is_not_promoted() -> None:
    cluster = elected("abc")
    cluster.add("d")
    cluster.cut.add(("a", "d"))
    cluster.change("a", AddLearner("d", ""))
    cluster.settle()
    with pytest.raises(Conflict, match="has not taken a snapshot over yet"):
        cluster.change("a", PromoteLearner("d"))


# One at a time


def test_a_second_change_waits_for_the_first() -> None:
    """Thesis 4.1: majorities of configurations that are two changes apart need not overlap."""
    cluster = elected("abc")
    cluster.change("a", AddLearner("d", ""))
    with pytest.raises(Conflict, match="another change of the membership is not settled yet"):
        cluster.change("a", AddLearner("e", ""))
    cluster.settle()
    cluster.change("a", AddLearner("e", ""))


def test_a_leader_that_has_committed_nothing_in_its_term_changes_nothing() -> None:
    """Pitfall (raft-dev, 2015): two leaders could change the same configuration in two ways, and both be agreed on."""
    cluster = elected("abc")
    cluster.crash("a")
    forget_leader(cluster, "b", "c")
    time_out(cluster, "b")
    while not cluster["b"].is_leader:
        cluster.deliver(cluster.take())
    with pytest.raises(NotProposed, match="b has only begun to lead"):
        cluster.change("b", AddLearner("d", ""))
    cluster.settle()
    cluster.change("b", AddLearner("d", ""))


def test_only_a_leader_that_stays_changes_the_membership() -> None:
    cluster = elected("abc")
    with pytest.raises(NotProposed, match="b does not lead; a does"):
        cluster.change("b", AddLearner("d", ""))
    cluster.cut = {("a", "b")}
    cluster["a"].transfer("b")
    with pytest.raises(NotProposed, match="handing the leadership over to b"):
        cluster.change("a", AddLearner("d", ""))


def test_no_change_is_begun_after_which_the_living_would_be_no_majority() -> None:
    """It could not be taken back. With c down, removing b would leave a alone of two; removing c is what helps."""
    cluster = elected("abc")
    cluster.crash("c")
    for _ in range(2 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    with pytest.raises(Conflict, match="of the voters a, c that there would be, only a would be alive"):
        cluster.change("a", RemoveMember("b"))
    cluster.change("a", RemoveMember("c"))
    settle_with_ticks(cluster)
    assert cluster["b"].contacts.removed == ("c",)


def test_a_configuration_is_in_force_when_appended_and_falls_back_when_cut() -> None:
    """Thesis 4.1. The cut leader of four forgets the fifth, and follows again."""
    cluster = elected("abcd")
    cluster.partition("a", "bcd")
    cluster.change("a", RemoveMember("d"))
    cluster.process("a")
    assert cluster["a"].membership.names == ("a", "b", "c")
    assert (cluster["a"].contacts.names, cluster["a"].contacts.removed) == (("a", "b", "c", "d"), ())
    cluster.take()
    forget_leader(cluster, "b", "c", "d")
    time_out(cluster, "d")
    cluster.settle()
    assert cluster["d"].is_leader
    cluster.heal()
    settle_with_ticks(cluster)
    assert cluster["a"].membership.names == ("a", "b", "c", "d")
    assert cluster["a"].contacts is cluster["a"].membership
    assert cluster["a"].standing.leader == "d"


def test_the_network_learns_of_members_from_ready() -> None:
    cluster = elected("abc")
    node = cluster["a"]
    node.change_membership(RemoveMember("c"), 7)
    ready = node.ready()
    assert ready.membership is not None
    assert (ready.membership.names, ready.membership.removed) == (("a", "b", "c"), ())
    assert [(m.to, len(m.entries)) for m in ready.messages if isinstance(m, AppendRequest)] == [("b", 1)]
    node.persisted(ready)
    assert not node.has_ready()
    node.step(AppendResponse("b", "a", 1, 2))
    settled = node.ready()
    assert settled.membership is not None
    assert (settled.membership.names, settled.membership.removed) == (("a", "b"), ("c",))
    (entry,) = settled.committed
    assert (entry.kind, entry.request_id) == (EntryKind.MEMBERSHIP, 7)
    assert node.membership_at(1).names == ("a", "b", "c")
    assert node.membership_at(2).names == ("a", "b")


def test_a_configuration_that_cannot_be_read_changes_nothing() -> None:
    cluster = elected("abc")
    noise = Entry(2, 1, EntryKind.MEMBERSHIP, b"noise")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        cluster["b"].step(AppendRequest("a", "b", 1, 1, 1, (Entry(2, 1), Entry(3, 1, noise.kind, noise.data)), 1))
    with pytest.raises(InvalidRequest, match="cannot be read"):
        cluster["b"].step(AppendRequest("a", "b", 1, 1, 1, (noise,), 1))
    assert cluster["b"].log.last_index == 1
    cluster.propose("a")
    cluster.settle()
    assert cluster["b"].log.last_index == 2


def test_a_restarted_member_knows_the_configurations_in_its_log() -> None:
    cluster = with_learner("abc")
    for name in "abcd":
        cluster.crash(name)
        cluster.restart(name, 0)
    assert {cluster[name].membership.learners for name in "abcd"} == {("d",)}


# Removing


def test_a_removed_follower_is_sent_nothing_more_and_cannot_disturb() -> None:
    """Thesis 4.2.3: it does not know of its removal, times out, and asks in vain: the others hear from a leader, and
    once they do not, have what it lacks."""
    cluster = elected("abc")
    cluster.change("a", RemoveMember("c"))
    settle_with_ticks(cluster)
    assert not cluster["c"].is_removed
    for _ in range(5 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    assert cluster["a"].is_leader
    assert cluster["a"].standing.term == 1
    assert cluster["c"].standing.role is Role.PRE_CANDIDATE
    forget_leader(cluster, "b")
    log = cluster["c"].log
    cluster.deliver([VoteRequest("c", "b", 2, log.last_index, log.last_term)])
    assert [answer.granted for answer in taken(cluster, VoteResponse, to="c")] == [False]


def test_a_removed_leader_leads_on_without_counting_itself_and_then_hands_over() -> None:
    """Thesis 4.2.2 and 3.10."""
    cluster = elected("abc")
    settle_with_ticks(cluster)
    index, _ = cluster.change("a", RemoveMember("a"))
    cluster.cut = {("a", "c"), ("c", "a")}
    cluster.process("a")
    cluster.deliver(cluster.take(AppendRequest, to="b"))
    cluster.deliver(cluster.take(AppendResponse, sender="b"))
    assert cluster["a"].log.commit_index == index - 1, "a and b are one voter"
    assert cluster["a"].is_leader
    cluster.heal()
    cluster.tick("a")
    cluster.settle()
    assert cluster["a"].is_removed
    assert cluster.members["a"].applied[-1].index == index
    assert cluster.leader in ("b", "c")
    assert cluster[cluster.leader].standing.term == 2
    settle_with_ticks(cluster)
    for name in "bc":
        assert cluster[name].contacts.removed == ("a",)


def test_a_removed_leader_does_not_count_itself_among_those_that_it_hears() -> None:
    """CheckQuorum: of the voters b and c, b alone is no majority."""
    cluster = elected("abc")
    cluster.cut = {("a", "c"), ("c", "a")}
    cluster.change("a", RemoveMember("a"))
    for _ in range(2 * ELECTION_TICKS):
        cluster.tick("a", "b")
        cluster.settle()
    assert not cluster["a"].is_leader
    assert not cluster["a"].is_removed


def test_a_removed_leader_stops_counting_itself_in_reads_too() -> None:
    cluster = elected("abc")
    cluster.change("a", RemoveMember("a"))
    cluster.cut = {("a", "c"), ("c", "a")}
    context = cluster.read("a")
    cluster.process("a")
    round_number = cluster["a"]._state.reads.newest_round
    cluster.take()
    cluster.deliver([HeartbeatResponse("b", "a", 1, round_number)])
    assert context not in cluster.members["a"].reads
    cluster["a"].step(HeartbeatResponse("c", "a", 1, round_number))
    cluster.process("a")
    assert cluster.members["a"].reads[context] == 1


def test_a_read_that_is_under_way_when_the_configuration_changes_is_confirmed_by_the_new_one() -> None:
    """What was echoed before does not count; the round begins anew, and old echoes come too late."""
    cluster = with_learner("ab", "c")
    context = cluster.read("a")
    cluster.process("a")
    old_round = cluster["a"]._state.reads.newest_round
    cluster.take()
    cluster.change("a", PromoteLearner("c"))
    cluster.process("a")
    cluster.take()
    cluster.deliver([HeartbeatResponse("b", "a", 1, old_round), HeartbeatResponse("c", "a", 1, old_round)])
    assert context not in cluster.members["a"].reads
    cluster.deliver([HeartbeatResponse("c", "a", 1, cluster["a"]._state.reads.newest_round)])
    assert cluster.members["a"].reads[context] > 0


def test_a_removed_leader_hands_over_to_a_voter_that_is_alive() -> None:
    cluster = elected("abcd")
    cluster.propose("a")
    settle_with_ticks(cluster)
    cluster.crash("d")
    for _ in range(3 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    cluster.change("a", RemoveMember("a"))
    cluster.process("a")
    while cluster["a"].is_leader:
        cluster.deliver(cluster.take())
    assert [message.to for message in taken(cluster, TimeoutNow)] == ["c"]


def test_a_leader_that_was_removed_without_a_majority_is_elected_to_finish_it() -> None:
    """Thesis 4.2.2, figure 4.6: b, with the shorter log, can never be elected by a. So a, though its log removes it,
    campaigns; it needs b's vote alone, and gives the leadership up when its removal is committed."""
    cluster = elected("ab")
    cluster.partition("a", "b")
    cluster.change("a", RemoveMember("a"))
    cluster.process("a")
    assert cluster.members["a"].entries[-1].kind is EntryKind.MEMBERSHIP
    cluster.crash("a")
    cluster.restart("a")
    cluster.take()
    cluster.heal()
    assert cluster["a"].membership.voters == ("b",)
    assert not cluster["a"].is_removed
    for _ in range(5 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    assert cluster["a"].is_removed
    assert cluster["b"].is_leader
    assert cluster["b"].membership.names == ("b",)
    with pytest.raises(NotProposed):
        cluster.propose("a")


def test_a_member_whose_removal_is_committed_does_not_campaign() -> None:
    cluster = elected("abc")
    cluster.change("a", RemoveMember("a"))
    settle_with_ticks(cluster)
    cluster.take()
    cluster.tick("a", times=5 * ELECTION_TICKS)
    assert cluster.take(VoteRequest, sender="a") == []


def test_an_answer_of_a_member_that_was_removed_meanwhile_is_ignored() -> None:
    cluster = elected("abc")
    cluster.change("a", RemoveMember("c"))
    cluster.settle()
    commit_index = cluster["a"].log.commit_index
    cluster.deliver([AppendResponse("c", "a", 1, 2), HeartbeatResponse("c", "a", 1)])
    assert cluster["a"].log.commit_index == commit_index
    assert "c" not in cluster["a"].progress()


# Handing over, and who is told what


def test_leadership_is_handed_over_to_voters_only() -> None:
    cluster = with_learner("abc")
    assert not cluster["a"].transfer("d")
    assert cluster["a"].most_caught_up(["d"]) == ""
    assert cluster["a"].most_caught_up(["b", "d"]) == "b"


def test_transfers_do_not_put_off_the_leaders_own_check() -> None:
    """CheckQuorum must not wait because somebody asks for a transfer again and again."""
    cluster = elected("abc")
    cluster.partition("a", "bc")
    for _ in range(2 * ELECTION_TICKS):
        cluster["a"].transfer("b")
        cluster.tick("a")
    assert not cluster["a"].is_leader


def test_the_only_voter_leads_at_the_first_tick_and_waits_for_nothing_but_its_disk() -> None:
    cluster = Cluster("a")
    cluster.members["a"].holds_disk = True
    cluster.tick("a", times=5 * ELECTION_TICKS)
    assert cluster["a"].standing.term == 1
    assert cluster["a"].standing.role is Role.CANDIDATE
    cluster.sync("a")
    assert cluster["a"].is_leader


def test_a_leader_tells_how_far_the_others_are() -> None:
    cluster = with_learner("abc")
    progress = cluster["a"].progress()
    last_index = cluster["a"].log.last_index
    assert {name: (p.match_index, p.is_learner) for name, p in progress.items()} == {
        "b": (last_index, False),
        "c": (last_index, False),
        "d": (last_index, True),
    }
    assert all(p.is_recently_active and p.next_index == last_index + 1 for p in progress.values())
    assert cluster["b"].progress() == {}
