"""Finds what of a transcript a session holds already, by short digests of the messages.

A graph hands over its whole thread at every turn, and a session has read all of it but the end. It
compares, and says what is new; it reads nothing and asks no store. A prompt's few-shot examples are
no transcript: they come back at each turn, and the session's own answers never stand behind them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import chain, pairwise

from langchain_core.messages import AIMessage, BaseMessage

from langchain_rwkv_state.errors import SessionConflict
from langchain_rwkv_state.prompt.markers import said_digests
from langchain_rwkv_state.store import LogEntry


def may_repeat(messages: Sequence[BaseMessage]) -> bool:
    """Says whether messages may be a transcript: one alone never is."""
    return sum(message.type != "system" for message in messages) > 1


def only_new(
    messages: Sequence[BaseMessage],
    log: Sequence[LogEntry],
    unread: Sequence[BaseMessage] = (),
    *,
    session: str,
    n_turns: int,
    answered: bool = True,
) -> list[BaseMessage]:
    """Returns the messages that a session does not hold yet.

    Args:
        messages: What a turn is given, without the system messages that lead it.
        log: The session's log, newest first.
        unread: What stands behind its head and is read with this turn. What of it still waits for
            an answer is a matter of `without_resent`.
        session: The session's name, for messages.
        n_turns: How many turns the session has, more than a log keeps perhaps.
        answered: Whether an answer is to follow. Where not, what the session holds whole is given
            to be read once more, and is.

    Raises:
        ValueError: All of them are there, so there is nothing to answer.
        SessionConflict: They begin as the session does and part from it before its end.
    """
    turns = [entry.said for entry in reversed(log)]
    complete = len(log) == n_turns and all(turns)
    turns += [said_digests(unread)] if unread else []
    held = tuple(chain.from_iterable(turns))
    places = [place for place, message in enumerate(messages) if message.type != "system"]
    talk = [messages[place] for place in places]
    given = said_digests(talk)
    covered = _covered(talk, given, held, complete=complete)
    if covered == len(given) and not answered:
        return list(messages)
    if covered == len(given):
        raise ValueError(
            f"Session {session!r} holds all {covered} messages of the input already: there is "
            "nothing new to answer. Pass the new message, alone or behind the transcript."
        )
    if covered:
        return list(messages[places[covered - 1] + 1 :])
    if complete:
        _require_no_branch(talk, given, turns, session)
    if not answered:
        return list(messages)
    if _repeats_turns(given, turns):
        warnings.warn(
            f"Some of these messages are turns that session {session!r} holds already, but they do "
            "not go on from its end: all are read again, as they are given. Pass only new messages "
            "to a session, or the whole transcript as it was.",
            stacklevel=2,
        )
    elif complete and _is_rewritten(talk, given, turns):
        warnings.warn(
            f"These messages begin as session {session!r} does, but hold other answers than its "
            "own, as where a later step rewrites them: they are not recognised, and all are read "
            "again, at every turn. Pass only new messages to a session, or keep its answers as "
            "they are.",
            stacklevel=2,
        )
    return list(messages)


def unanswered(unread: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Returns what of a session's unread messages stands behind the last answer among them."""
    answers = [at for at, message in enumerate(unread) if isinstance(message, AIMessage)]
    return list(unread[answers[-1] + 1 if answers else 0 :])


def without_resent(
    messages: Sequence[BaseMessage], waiting: Sequence[BaseMessage]
) -> list[BaseMessage]:
    """Leaves out what a session's unread messages end with: a question that is asked again.

    A page that was reloaded asks again what nobody answered, and it is one question.

    Args:
        messages: What of a turn's input the session did not hold before.
        waiting: The messages that wait for an answer.
    """
    places = [place for place, message in enumerate(messages) if message.type != "system"]
    given, held = said_digests(messages), said_digests(waiting)
    for count in range(min(len(given), len(held)), 0, -1):
        if given[:count] == held[-count:]:
            return list(messages[places[count - 1] + 1 :])
    return list(messages)


def _covered(
    talk: Sequence[BaseMessage], given: Sequence[str], held: Sequence[str], *, complete: bool
) -> int:
    """Returns how many of the first messages lead up to the session's end.

    The session's last messages stand at the input's beginning. Where its log is not whole (it keeps
    a hundred turns, and older releases noted nothing), all that it knows may stand further behind.
    """
    for count in range(min(len(given), len(held)), 0, -1):
        all_of_it = complete and count == len(held)
        ends = isinstance(talk[count - 1], AIMessage) or all_of_it
        if ends and tuple(given[:count]) == tuple(held[-count:]):
            return count
    if complete or len(held) < 2:
        return 0
    for end in range(len(given), len(held), -1):
        there = tuple(given[end - len(held) : end]) == tuple(held)
        if there and isinstance(talk[end - 1], AIMessage):
            return end
    return 0


def _require_no_branch(
    talk: Sequence[BaseMessage], given: Sequence[str], turns: Sequence[Sequence[str]], session: str
) -> None:
    """Refuses what begins with whole turns of the session and then says something else.

    Less than a whole turn in common is what a prompt's examples have in common with the first turn.
    """
    held = list(chain.from_iterable(turns))
    common = next(
        (at for at, (one, other) in enumerate(zip(given, held, strict=False)) if one != other),
        min(len(given), len(held)),
    )
    end = 0
    for turn in turns:
        end += len(turn)
        if end <= common and isinstance(talk[end - 1], AIMessage):
            break
    else:
        return
    raise SessionConflict(
        f"The input begins as session {session!r} does and parts from it after message {common} "
        f"({talk[common - 1].text!s:.60}), {len(held) - common} messages before the session's "
        "end: it is another branch of the conversation. Rewind the session (store.rewind) or fork "
        "it (store.fork with at=) to where they part, or pass only the new messages."
    )


def _repeats_turns(given: Sequence[str], turns: Sequence[Sequence[str]]) -> bool:
    """Says whether a question of the session stands before the session's own answer to it."""
    answered = {(turn[-2], turn[-1]) for turn in turns if len(turn) > 1}
    examples = {pair for turn in turns for pair in pairwise(turn[:-1])}
    return any(pair in answered - examples for pair in pairwise(given))


def _is_rewritten(
    talk: Sequence[BaseMessage], given: Sequence[str], turns: Sequence[Sequence[str]]
) -> bool:
    """Says whether an answer that is not the session's own stands behind a question of it.

    What begins otherwise than the session, and what a turn itself was given as an example, is
    somebody's prompt.
    """
    if not turns or given[0] != turns[0][0]:
        return False
    questions = {turn[-2] for turn in turns if len(turn) > 1}
    known = {pair for turn in turns for pair in pairwise(turn)}
    return any(
        pair[0] in questions and pair not in known and isinstance(answer, AIMessage)
        for pair, answer in zip(pairwise(given), talk[1:], strict=True)
    )
