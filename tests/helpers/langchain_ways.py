"""Lists LangChain's ways with messages on their way to a model, and what becomes of the marker.

Each way is one use of a function or class of `langchain_core.messages` or `.prompts`, as a chain
that is given ``{"history": [...], "q": "..."}``. ``python -m tests.helpers.langchain_ways`` writes
the table of them into ``docs/langchain.md``, where a test compares it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from langchain_core.messages import (
    BaseMessage,
    HumanMessage,
    SystemMessage,
    _message_from_dict,
    add_notification_metadata,
    convert_to_messages,
    convert_to_openai_messages,
    filter_messages,
    get_buffer_string,
    get_notification_metadata,
    merge_message_runs,
    message_chunk_to_message,
    message_to_dict,
    messages_from_dict,
    messages_to_dict,
    trim_messages,
)
from langchain_core.prompts import (
    AIMessagePromptTemplate,
    ChatMessagePromptTemplate,
    ChatPromptTemplate,
    FewShotChatMessagePromptTemplate,
    FewShotPromptTemplate,
    FewShotPromptWithTemplates,
    HumanMessagePromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
    SystemMessagePromptTemplate,
)
from langchain_core.prompts.structured import StructuredPrompt
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

PAGE = Path(__file__).parents[2] / "docs/langchain.md"
BEGIN, END = "<!-- ways: begin -->\n", "<!-- ways: end -->\n"

Outcome = Literal["memory", "cut", "text", "refused"]
WORDS: dict[Outcome, str] = {
    "memory": "memory works",
    "cut": "a warning at the end of the turn: the marker was cut",
    "text": "a warning as the model reads: the marker is text",
    "refused": "an error before the model",
}


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        names: The functions and classes that it shows.
        how: How they are used, for the table.
        outcome: What becomes of the memory.
        chain: Makes the chain, given the model.
        unread: Whether the session has unread messages before each turn.
    """

    names: tuple[str, ...]
    how: str
    outcome: Outcome
    chain: Callable[[Any], Runnable[Any, Any]]
    unread: bool = False

    @property
    def id(self) -> str:
        return f"{self.names[0]}: {self.how}"


PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Be kind."), MessagesPlaceholder("history"), ("human", "{q}")]
)
BARE = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{q}")])
EXAMPLES = [{"input": "2+2", "output": "4"}]
SHOTS = FewShotChatMessagePromptTemplate(
    examples=EXAMPLES,
    example_prompt=ChatPromptTemplate.from_messages([("human", "{input}"), ("ai", "{output}")]),
)
SHOT = PromptTemplate.from_template("{input}={output}")


def through(work: Callable[[list[BaseMessage]], Any]) -> Callable[[Any], Runnable[Any, Any]]:
    """A chain whose prompt's messages go through a function."""
    return lambda chat: PROMPT | (lambda value: value.to_messages()) | RunnableLambda(work) | chat


def between(*runnables: Any, prompt: Any = PROMPT) -> Callable[[Any], Runnable[Any, Any]]:
    """A chain with something between its prompt and its model."""

    def chain(chat: Any) -> Runnable[Any, Any]:
        made: Runnable[Any, Any] = prompt
        for each in (*runnables, chat):
            made = made | each
        return made

    return chain


def trimmed(*, prompt: Any = PROMPT, **options: Any) -> Callable[[Any], Runnable[Any, Any]]:
    """A chain with a trimmer; ``token_counter="model"`` counts with its model."""

    def chain(chat: Any) -> Runnable[Any, Any]:
        given = dict(options)
        if given["token_counter"] == "model":
            given["token_counter"] = chat
        made: Runnable[Any, Any] = prompt | trim_messages(**given) | chat
        return made

    return chain


def of_messages(*messages: Any) -> Callable[[Any], Runnable[Any, Any]]:
    """A chain whose prompt is made of these."""
    return lambda chat: ChatPromptTemplate.from_messages(list(messages)) | chat


def words(text: str) -> list[str]:
    return [word + " " for word in text.split(" ")]


def one_message(message: BaseMessage) -> int:
    return len(str(message.text))


# LangChain looks for the class itself to tell a counter of one message from one of a list.
one_message.__annotations__["message"] = BaseMessage


def as_text(**options: Any) -> Callable[[Any], Runnable[Any, Any]]:
    return lambda chat: (
        RunnablePassthrough.assign(history=lambda x: get_buffer_string(x["history"], **options))
        | ChatPromptTemplate.from_template("{history}\nHuman: {q}")
        | chat
    )


def noted(messages: list[BaseMessage]) -> list[BaseMessage]:
    *rest, last = messages
    assert isinstance(last, HumanMessage)
    assert all(get_notification_metadata(message) is None for message in messages)
    return [*rest, add_notification_metadata(last, source="test")]


TRIM = ("trim_messages",)
WAYS = [
    Way(("ChatPromptTemplate", "MessagesPlaceholder"), "`placeholder`", "memory", between()),
    Way(
        ("MessagesPlaceholder",),
        "`n_messages=1`, nothing unread",
        "memory",
        of_messages(MessagesPlaceholder("history", n_messages=1), ("human", "{q}")),
    ),
    Way(
        ("MessagesPlaceholder",),
        "`n_messages=2`, two unread",
        "cut",
        of_messages(MessagesPlaceholder("history", n_messages=2), ("human", "{q}")),
        unread=True,
    ),
    Way(
        ("MessagesPlaceholder",),
        "`optional=True`",
        "memory",
        of_messages(MessagesPlaceholder("history", optional=True), ("human", "{q}")),
    ),
    Way(
        TRIM,
        '`start_on="human"`, behind a system prompt',
        "cut",
        trimmed(
            max_tokens=60,
            strategy="last",
            token_counter="model",
            include_system=True,
            start_on="human",
        ),
    ),
    Way(
        TRIM,
        '`start_on="human", include_system=True`, no system prompt',
        "memory",
        trimmed(
            prompt=BARE,
            max_tokens=60,
            strategy="last",
            token_counter="model",
            include_system=True,
            start_on="human",
        ),
    ),
    Way(
        TRIM,
        '`start_on="human"`, no system prompt',
        "cut",
        trimmed(
            prompt=BARE, max_tokens=60, strategy="last", token_counter="model", start_on="human"
        ),
    ),
    Way(
        TRIM,
        "`token_counter=chat`, room for the question alone",
        "memory",
        trimmed(max_tokens=30, strategy="last", token_counter="model"),
    ),
    Way(
        TRIM,
        "`include_system=True`",
        "memory",
        trimmed(max_tokens=60, strategy="last", token_counter="model", include_system=True),
    ),
    Way(
        TRIM,
        '`token_counter="approximate"`, room for all',
        "memory",
        trimmed(max_tokens=60, strategy="last", token_counter="approximate"),
    ),
    Way(
        TRIM,
        '`token_counter="approximate"`, room for the question alone',
        "cut",
        trimmed(max_tokens=12, strategy="last", token_counter="approximate"),
    ),
    Way(
        TRIM,
        "`token_counter=len, max_tokens=2`",
        "memory",
        trimmed(max_tokens=2, strategy="last", token_counter=len),
    ),
    Way(
        TRIM,
        "`token_counter=len, max_tokens=1`",
        "cut",
        trimmed(max_tokens=1, strategy="last", token_counter=len),
    ),
    Way(
        TRIM,
        "a counter of one message",
        "memory",
        trimmed(max_tokens=100, strategy="last", token_counter=one_message),
    ),
    Way(
        TRIM,
        "`allow_partial=True`, a part of the marker",
        "memory",
        trimmed(
            max_tokens=40,
            strategy="last",
            token_counter=one_message,
            allow_partial=True,
            text_splitter=words,
        ),
    ),
    Way(
        TRIM,
        '`strategy="first"`',
        "memory",
        trimmed(max_tokens=60, strategy="first", token_counter="model"),
    ),
    Way(
        TRIM,
        '`strategy="first"`, `allow_partial=True`, a part of the marker',
        "memory",
        trimmed(
            max_tokens=40,
            strategy="first",
            token_counter=one_message,
            allow_partial=True,
            text_splitter=words,
        ),
    ),
    Way(
        TRIM,
        '`end_on="human"`',
        "memory",
        trimmed(max_tokens=60, strategy="last", token_counter="model", end_on="human"),
    ),
    Way(
        ("filter_messages",),
        '`include_types=["human", "ai"]`',
        "cut",
        between(filter_messages(include_types=["human", "ai"])),
    ),
    Way(
        ("filter_messages",),
        '`exclude_types=["system"]`',
        "cut",
        between(filter_messages(exclude_types=[SystemMessage])),
    ),
    Way(
        ("filter_messages",),
        '`exclude_types=["tool"]`, names, ids, tool calls',
        "memory",
        between(
            filter_messages(
                exclude_types=["tool"],
                exclude_names=["x"],
                exclude_ids=["x"],
                exclude_tool_calls=True,
            )
        ),
    ),
    Way(("merge_message_runs",), "with a system prompt", "memory", between(merge_message_runs())),
    Way(("convert_to_messages",), "of a prompt's messages", "memory", through(convert_to_messages)),
    Way(
        ("convert_to_openai_messages",),
        "which drops `additional_kwargs`",
        "text",
        through(convert_to_openai_messages),
    ),
    Way(
        ("messages_to_dict", "messages_from_dict"),
        "there and back",
        "memory",
        through(lambda messages: messages_from_dict(messages_to_dict(messages))),
    ),
    Way(
        ("message_to_dict", "_message_from_dict"),
        "there and back",
        "memory",
        through(lambda messages: [_message_from_dict(message_to_dict(m)) for m in messages]),
    ),
    Way(
        ("message_chunk_to_message",),
        "of each message",
        "memory",
        through(lambda messages: [message_chunk_to_message(m) for m in messages]),
    ),
    Way(
        ("add_notification_metadata", "get_notification_metadata"),
        "of the question",
        "memory",
        through(noted),
    ),
    Way(("get_buffer_string",), "into a template", "text", as_text()),
    Way(("get_buffer_string",), '`format="xml"`', "text", as_text(format="xml")),
    Way(
        ("PromptTemplate",),
        "`{history}`",
        "text",
        lambda chat: PromptTemplate.from_template("{history}\nUser: {q}") | chat,
    ),
    Way(
        ("PromptTemplate",),
        "`{{history}}`, mustache",
        "text",
        lambda chat: (
            PromptTemplate.from_template("{{history}}\nUser: {{q}}", template_format="mustache")
            | chat
        ),
    ),
    Way(
        ("FewShotPromptTemplate",),
        "`suffix` with `{history}`",
        "text",
        lambda chat: (
            FewShotPromptTemplate(
                examples=EXAMPLES,
                example_prompt=SHOT,
                suffix="{history}\n{q}",
                input_variables=["history", "q"],
            )
            | chat
        ),
    ),
    Way(
        ("FewShotPromptWithTemplates",),
        "`suffix` with `{history}`, which it formats twice",
        "refused",
        lambda chat: (
            FewShotPromptWithTemplates(
                examples=EXAMPLES,
                example_prompt=SHOT,
                suffix=PromptTemplate.from_template("{history}\n{q}"),
                input_variables=["history", "q"],
            )
            | chat
        ),
    ),
    Way(
        ("FewShotChatMessagePromptTemplate",),
        "before the history",
        "memory",
        of_messages(SHOTS, MessagesPlaceholder("history"), ("human", "{q}")),
    ),
    Way(
        ("FewShotChatMessagePromptTemplate",),
        "behind the history",
        "memory",
        of_messages(MessagesPlaceholder("history"), SHOTS, ("human", "{q}")),
    ),
    Way(
        ("SystemMessagePromptTemplate",),
        "`{history}`",
        "text",
        of_messages(SystemMessagePromptTemplate.from_template("{history}"), ("human", "{q}")),
    ),
    Way(
        ("HumanMessagePromptTemplate",),
        "`{history}`",
        "text",
        of_messages(HumanMessagePromptTemplate.from_template("{history} {q}")),
    ),
    Way(
        ("AIMessagePromptTemplate",),
        "`{history}`",
        "text",
        of_messages(AIMessagePromptTemplate.from_template("{history}"), ("human", "{q}")),
    ),
    Way(
        ("ChatMessagePromptTemplate",),
        "`{history}`",
        "text",
        of_messages(
            ChatMessagePromptTemplate.from_template("{history}", role="Narrator"), ("human", "{q}")
        ),
    ),
    Way(
        ("DictPromptTemplate",),
        "a text block with `{history}`",
        "text",
        of_messages(
            HumanMessagePromptTemplate.from_template(
                [{"type": "text", "text": "{history} {q}", "extras": {"n": "1"}}]
            )
        ),
    ),
    Way(
        ("ImagePromptTemplate",),
        "an image whose address is `{history}`",
        "refused",
        of_messages(
            HumanMessagePromptTemplate.from_template(
                [{"type": "image_url", "image_url": {"url": "data:{history}"}}]
            ),
            ("human", "{q}"),
        ),
    ),
    Way(
        ("StructuredPrompt",),
        "its messages, to the model",
        "memory",
        lambda chat: (
            RunnableLambda(
                StructuredPrompt.from_messages_and_schema(
                    [MessagesPlaceholder("history"), ("human", "{q}")],
                    {"title": "x", "description": "x", "type": "object", "properties": {}},
                ).invoke
            )
            | chat
        ),
    ),
    Way(
        ("ChatPromptTemplate",),
        "`prompt.invoke(...).to_string()`",
        "text",
        lambda chat: PROMPT | (lambda value: value.to_string()) | chat,
    ),
]

TAKE_NO_MESSAGES = {
    # the messages themselves, and their parts
    *("AIMessage", "AIMessageChunk", "AnyMessage", "BaseMessage", "BaseMessageChunk"),
    *("ChatMessage", "ChatMessageChunk", "FunctionMessage", "FunctionMessageChunk"),
    *("HumanMessage", "HumanMessageChunk", "MessageLikeRepresentation", "RemoveMessage"),
    *("SystemMessage", "SystemMessageChunk", "ToolMessage", "ToolMessageChunk"),
    *("InputTokenDetails", "OutputTokenDetails", "UsageMetadata", "NotificationMetadata"),
    *("ToolCall", "ToolCallChunk", "InvalidToolCall", "ServerToolCall", "ServerToolCallChunk"),
    *("ServerToolResult", "Annotation", "Citation", "NonStandardAnnotation"),
    # content
    *("AudioContentBlock", "ContentBlock", "DataContentBlock", "FileContentBlock"),
    *("ImageContentBlock", "NonStandardContentBlock", "PlainTextContentBlock"),
    *("ReasoningContentBlock", "RefusalContentBlock", "TextContentBlock", "VideoContentBlock"),
    *("convert_to_openai_data_block", "convert_to_openai_image_block", "is_data_content_block"),
    "merge_content",
    # ids
    *("LC_AUTO_PREFIX", "LC_ID_PREFIX", "ensure_id"),
    # what prompts share, load, and check; documents
    *("BaseChatPromptTemplate", "BasePromptTemplate", "StringPromptTemplate", "load_prompt"),
    *("check_valid_template", "get_template_variables", "jinja2_formatter", "validate_jinja2"),
    *("format_document", "aformat_document"),
}
"""Names of the two modules that no way shows, since they take no messages."""


def table() -> str:
    """Returns the table of the ways, in Markdown."""
    lines = ["| between the history and the model | used | what becomes of the memory |"]
    lines.append("|---|---|---|")
    for way in WAYS:
        names = ", ".join(f"`{name}`" for name in way.names)
        lines.append(f"| {names} | {way.how} | {WORDS[way.outcome]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    page = PAGE.read_text()
    before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    PAGE.write_text(before + table() + after)


if __name__ == "__main__":
    main()
