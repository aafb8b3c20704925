"""`ChatRWKV` answers messages: RWKV as a LangChain chat model, a pure function of its input.

A conversation's memory enters as a state marker among the messages and leaves as a reference in
the answer's `response_metadata`; nothing is remembered here, and generating commits nothing. This
is LangChain's face and no more: `prompt` plans a call, and `conversation` keeps sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, merge_configs
from pydantic import field_validator

from langchain_rwkv_state._arguments import stop_texts
from langchain_rwkv_state._progress import LateBar
from langchain_rwkv_state.base import CALL_OPTIONS, RWKVModel, seen
from langchain_rwkv_state.conversation.bound_model import BoundModel
from langchain_rwkv_state.conversation.filings import file_answer
from langchain_rwkv_state.conversation.lanes import each_as_completed
from langchain_rwkv_state.conversation.prefill import Prefill
from langchain_rwkv_state.conversation.session import RWKVSession
from langchain_rwkv_state.conversation.session_turn import OnAbort, OnConflict
from langchain_rwkv_state.conversation.sessions import RWKVSessions
from langchain_rwkv_state.conversation.steps import arun, run
from langchain_rwkv_state.conversation.waiting import WAIT_SECONDS
from langchain_rwkv_state.engine import (
    Done,
    Engine,
    Request,
    TokenLogprob,
    check_constraint,
)
from langchain_rwkv_state.prefix_cache import CachedState, Namespace
from langchain_rwkv_state.prompt import plan as turn
from langchain_rwkv_state.prompt.answer_message import ChatCall
from langchain_rwkv_state.prompt.call_options import ASK_OPTIONS, Ask, as_reasoning
from langchain_rwkv_state.prompt.markers import (
    as_model_input,
    to_messages,
    without_markers,
    without_strangers,
)
from langchain_rwkv_state.prompt.structured import Method, Structured, tool_options
from langchain_rwkv_state.prompt.template import ChatTemplate
from langchain_rwkv_state.store import TTL


class ChatRWKV(RWKVModel, BaseChatModel):
    """RWKV as a chat model whose conversations are states of fixed size.

    Setup:
        ``pip install langchain-rwkv-state``; the built-in ``demo`` model needs nothing else.

    Key init args:
        model: ``demo``, a path to a ``.pth`` or ``.safetensors`` file, or
            ``org/repo[/file.pth]`` on a hub.
        strategy: ``auto``, or a device and a dtype, such as ``cuda fp16``, ``cuda int8`` or
            ``cpu fp32``; ``package`` before it takes the `rwkv` package for RWKV-7, too.
        store: A `StateStore`, a directory, or ``None`` for the user's default store.
        prefix_cache: A `PrefixStateCache`, ``None`` for the process's own, ``False`` for none.
        cache_salt: Keeps a tenant apart in the prefix cache; also an option of a call.
        temperature, top_p, top_k, presence_penalty, frequency_penalty, penalty_decay, seed:
            Sampling; ``temperature=0`` is greedy.
        max_tokens, stop: Where answers end.

    Instantiate:
        >>> from langchain_rwkv_state import ChatRWKV
        >>> chat = ChatRWKV(model="demo", temperature=0)  # doctest: +SKIP

    Invoke:
        >>> chat.invoke("Good morning.").content  # doctest: +SKIP

    Sessions:
        >>> bob = chat.with_session("bob", ttl=3600)  # doctest: +SKIP
        >>> bob.invoke("My name is Bob.")  # doctest: +SKIP
        >>> bob.invoke("What is my name?").content  # doctest: +SKIP
        'Your name is Bob.'
        >>> bob.ask_aside("Who am I?")  # doctest: +SKIP
        >>> chain = prompt | chat.with_sessions()  # doctest: +SKIP
        >>> chain.invoke(question, {"configurable": {"session_id": "bob"}})  # doctest: +SKIP

    Stream:
        >>> for chunk in chat.stream("Tell me a joke."):  # doctest: +SKIP
        ...     print(chunk.text, end="")

    Async:
        >>> await chat.ainvoke("Good morning.")  # doctest: +SKIP

    Warm state:
        >>> ref = chat.prefill([SystemMessage("Your name is Ada.")])  # doctest: +SKIP
        >>> chat.invoke([marker(ref), HumanMessage("What is your name?")])  # doctest: +SKIP

    Tool calling:
        >>> def add(a: int, b: int) -> int:
        ...     "Add two numbers."
        ...     return a + b
        >>> chat.bind_tools([add]).invoke("Add 3 and 4.").tool_calls  # doctest: +SKIP

    Structured output:
        >>> class Person(BaseModel):  # doctest: +SKIP
        ...     name: str
        ...     age: int
        >>> chat.with_structured_output(Person).invoke("Ann is 31.")  # doctest: +SKIP

    Thinking:
        >>> g1 = ChatRWKV(model="rwkv7-g1-2.9b.pth", reasoning="low")  # doctest: +SKIP
        >>> answer = g1.invoke("Is 91 prime?")  # doctest: +SKIP
        >>> answer.additional_kwargs["reasoning_content"]  # doctest: +SKIP

    Response metadata:
        ``model_name``, ``template``, ``sampling`` (what was used), ``finish_reason`` (``stop`` or
        ``length``) and ``rwkv_state``, the reference of the state behind the answer. It is kept in
        memory for a short while; commit it to a session, or keep it, to make it last. A call with
        ``logprobs=True`` gets ``logprobs``, as OpenAI writes them: how likely each token of the
        content was, and with ``top_logprobs`` (0 to 20) so many of the likeliest in its place.
    """

    reasoning: Any = None
    """Whether a model that thinks does so before it answers: ``None`` leaves it to the model,
    ``False`` switches it off, ``True``, ``low``, ``medium`` or ``high`` ask for it."""
    keep_reasoning: bool = False
    """Whether what was thought stays in the state that the next turn starts from."""

    cache: Any = False
    """Apart from LangChain's global cache: a hit there would name a state that may be gone."""
    streaming: bool = False
    """Whether `invoke` streams too, for callbacks that want each token; LangChain asks for it."""

    _call_options = (*CALL_OPTIONS, *ASK_OPTIONS)

    @field_validator("reasoning", mode="before")
    @classmethod
    def _known_reasoning(cls, value: Any) -> Any:
        return as_reasoning(value)

    # -- LangChain's interface ---------------------------------------------------------------

    def _resolve_model_profile(self) -> ModelProfile:
        return ModelProfile(
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            pdf_inputs=False,
            image_outputs=False,
            audio_outputs=False,
            video_outputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
            max_output_tokens=self.max_tokens,
        )

    @property
    def _llm_type(self) -> str:
        return "rwkv-state-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self._settings

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Says that LangChain's `dumpd` and `load` work (the weights stay where they are)."""
        return True

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "rwkv"
        texts = [*(self.stop or []), *stop_texts(stop or ())]
        if texts:
            params["ls_stop"] = texts
        return params

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        return super()._convert_input(as_model_input(model_input))

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        return super()._get_invocation_params(stop=stop, **seen(kwargs))

    def get_token_ids(self, text: str) -> list[int]:
        """Returns the model's token ids of a plain text."""
        return self.loaded().tokenizer.encode(text)

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Returns how many tokens the model reads before it answers messages.

        That is the messages in the chat template, the list of tools, the prompt of the answer, and
        what asks for a thought or for none: the ``input_tokens`` of the answer's usage. A marker
        counts nothing: the tokens that it stands for are not read again, while ``input_tokens`` of
        a conversation that goes on from one counts them, under ``cache_read``. No messages at all
        are 0.

        Args:
            messages: The messages.
            tools: Tools as for `bind_tools`.

        Raises:
            ValueError: A tool cannot be read.
            UnsupportedContentError: A message is of an unknown kind or holds more than text.
        """
        ask = self._ask({"tools": tools})
        template = self.loaded().template
        said = without_markers(messages)
        if not said:
            return 0
        return turn.count_tokens(
            said,
            template=template,
            lines=ask.system(template),
            reasoning=ask.reasoning,
            thoughts=ask.keep_reasoning,
        )

    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Returns this model with tools that it may call.

        Decoding is held to the tools' schemas: a call always parses and fits, unless
        ``max_tokens`` cuts it off. The tools are listed below the system prompt, and belong to it:
        a conversation whose tools change reads them anew.

        Args:
            tools: Functions, pydantic models, TypedDicts, JSON schemas or LangChain tools.
            tool_choice: ``auto`` (the default) leaves it to the model, ``any`` (or ``True``) asks
                for a call, ``none`` for words; or the name of a tool that is to be called.
            parallel_tool_calls: Whether one answer may call several; by default it may.
            strict: Taken as other partners take it; calls fit their schemas either way.
            **kwargs: Options of every call.

        Raises:
            ValueError: A tool cannot be read, or there is no such choice.
            SchemaError: A schema has a keyword that decoding cannot be held to; it names it.

        Example:
            >>> chat.bind_tools([add], tool_choice="add")  # doctest: +SKIP
        """
        options = tool_options(
            tools, tool_choice=tool_choice, parallel_tool_calls=parallel_tool_calls, strict=strict
        )
        self._check(options | kwargs)
        bound: Runnable[LanguageModelInput, AIMessage] = self.bind(**options, **kwargs)
        return bound

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        tools: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Returns a chain that answers with an object of a schema.

        Args:
            schema: A pydantic model, a TypedDict, or a JSON schema with a title.
            method: ``json_schema`` writes JSON of the schema, ``function_calling`` calls a tool of
                it, ``json_mode`` writes any JSON object, as the prompt says.
            include_raw: Whether to return ``{"raw", "parsed", "parsing_error"}`` and not to raise.
            strict: Taken as other partners take it; the output fits either way.
            tools: Tools that the model may call besides, with ``json_schema``.
            **kwargs: Options of every call.

        Returns:
            A chain that gives a pydantic object for a pydantic model, else a dict.

        Raises:
            ValueError: A schema or method cannot be had, or `kwargs` hold what the method sets.
            SchemaError: The schema has a keyword that decoding cannot be held to; it names it.

        Example:
            >>> chat.with_structured_output(Person).invoke("Ann is 31.")  # doctest: +SKIP
        """
        wanted = Structured.of(schema, method=method, strict=strict, tools=tools)
        twice = sorted(wanted.options.keys() & kwargs.keys())
        if twice:
            raise ValueError(
                f"{', '.join(twice)} of a call is what method={method!r} sets: leave it out, or "
                "bind it to a model without structured output."
            )
        self._check(wanted.options | kwargs)
        return wanted.chain(self.bind(**wanted.options, **kwargs), include_raw=include_raw)

    def bind(self, **kwargs: Any) -> Any:
        """Binds options to every call; a session of what comes back keeps them."""
        return BoundModel(bound=self, kwargs=seen(kwargs), config={})

    def with_config(self, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Binds a configuration to every call; a session of what comes back keeps it."""
        merged = cast("RunnableConfig", {**(config or {}), **kwargs})
        return BoundModel(bound=self, kwargs={}, config=merged)

    def _check(self, options: Mapping[str, Any]) -> None:
        """Tries what decoding is to be held to, before anything is asked.

        It is tried on bytes, in milliseconds: neither is a model loaded for it, nor does an event
        loop wait for the description of a vocabulary.

        Raises:
            ValueError: Something in it cannot be had.
        """
        constraint = self._ask(options).constraint(ChatTemplate.tools)
        if constraint is not None:
            check_constraint(constraint)

    def _ask(self, options: Mapping[str, Any]) -> Ask:
        return Ask.of(options, reasoning=self.reasoning, keep_reasoning=self.keep_reasoning)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answers many inputs together, in one pass of the model.

        Where the configuration sets no ``max_concurrency``, there are as many at once as `slots`
        says; LangChain's own default, made for calls over a network, follows the number of cores.
        Ctrl-C ends them all.
        """
        with self._counting(len(inputs)) as counters:
            batched = self._batched(config, counters)
            options = {**kwargs, "return_exceptions": return_exceptions}
            if len(inputs) < 2:  # in the caller's own thread
                return super().batch(inputs, batched, **options)
            found = dict(each_as_completed(self.invoke, inputs, batched, **options))
            return [found[at] for at in range(len(inputs))]

    def batch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Any]]:
        """As `batch`, and yields (place, answer) as the answers come.

        Left early, it ends those that are under way.
        """
        one_or_many = cast("RunnableConfig | list[RunnableConfig] | None", config)
        batched = self._batched(one_or_many, [])
        options = {**kwargs, "return_exceptions": return_exceptions}
        return each_as_completed(self.invoke, inputs, batched, **options)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As `batch`, without blocking the event loop."""
        with self._counting(len(inputs)) as counters:
            batched = self._batched(config, counters)
            return await super().abatch(
                inputs, batched, return_exceptions=return_exceptions, **kwargs
            )

    def _counting(self, total: int) -> AbstractContextManager[list[BaseCallbackHandler]]:
        if not self.progress:
            return nullcontext([])
        from langchain_rwkv_state._progress import counting

        return counting(total)

    def _batched(
        self,
        config: RunnableConfig | list[RunnableConfig] | None,
        counters: list[BaseCallbackHandler],
    ) -> RunnableConfig | list[RunnableConfig]:
        """Returns configurations that set how many calls run at once, and count them."""

        def one(given: RunnableConfig | None) -> RunnableConfig:
            known = ensure_config(given)
            known["max_concurrency"] = known.get("max_concurrency") or self.slots
            return merge_configs(known, {"callbacks": list(counters)}) if counters else known

        return list(map(one, config)) if isinstance(config, (list, tuple)) else one(config)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        engine, call = self.plan_call(messages, stop, kwargs)
        return self._result(call, engine.submit(call.request).result())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        engine, call = await asyncio.to_thread(self.plan_call, messages, stop, kwargs)
        done = await engine.submit(call.request).aresult()
        return await asyncio.to_thread(self._result, call, done)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        engine, call = self.plan_call(messages, stop, kwargs)
        handle, pieces = engine.submit(call.request), call.stream()
        try:
            for event in handle:
                for chunk in pieces.take(event):
                    yield ChatGenerationChunk(message=chunk)
                if isinstance(event, Done):
                    yield self._last_chunk(call, event)
        finally:
            handle.cancel()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        engine, call = await asyncio.to_thread(self.plan_call, messages, stop, kwargs)
        handle, pieces = engine.submit(call.request), call.stream()
        try:
            async for event in handle:
                for chunk in pieces.take(event):
                    yield ChatGenerationChunk(message=chunk)
                if isinstance(event, Done):
                    yield await asyncio.to_thread(self._last_chunk, call, event)
        finally:
            handle.cancel()

    # -- states ------------------------------------------------------------------------------

    def with_session(
        self,
        session: str,
        *,
        ttl: TTL = None,
        on_conflict: OnConflict = "wait",
        wait_timeout: float = WAIT_SECONDS,
        on_abort: OnAbort = "forget",
    ) -> RWKVSession:
        """Returns this model with a durable conversation of that name.

        Args:
            session: The session's name, 1 to 512 characters.
            ttl: Time to live from each turn on, in seconds or as a `timedelta`; ``None`` means
                the store's default, `math.inf` never.
            on_conflict: ``wait`` for the session's turns that came before, in whatever thread or
                process; or begin at once and, where somebody else committed meanwhile, ``raise`` a
                `SessionConflict` or ``fork`` the conversation.
            wait_timeout: Seconds to wait for the turns before; then `SessionConflict`.
            on_abort: Of a turn that is left before its answer is whole (a stream that is closed, a
                cancelled task, Ctrl-C), ``forget`` all, or ``keep_question``: the next turn reads
                it. See `RWKVSession`.
        """
        return RWKVSession(
            self,
            self._opened_store(),
            session,
            ttl=ttl,
            on_conflict=on_conflict,
            wait_timeout=wait_timeout,
            on_abort=on_abort,
        )

    def with_sessions(
        self,
        ttl: TTL = None,
        on_conflict: OnConflict = "wait",
        wait_timeout: float = WAIT_SECONDS,
        on_abort: OnAbort = "forget",
    ) -> RWKVSessions:
        """Returns this model with durable conversations, which each call names.

        The name is ``session_id`` in ``config["configurable"]``, or else ``thread_id``: for chains,
        graphs and servers, where one object serves all users.

        Args:
            ttl: Time to live of each session from each turn on; see `with_session`.
            on_conflict: See `with_session`.
            wait_timeout: See `with_session`.
            on_abort: See `with_session`.

        Example:
            >>> chain = prompt | chat.with_sessions(ttl="1h") | parser  # doctest: +SKIP
            >>> bob = {"configurable": {"session_id": "bob"}}
            >>> chain.invoke({"text": "My name is Bob."}, bob)  # doctest: +SKIP
        """
        return RWKVSessions(
            self,
            self._opened_store(),
            ttl=ttl,
            on_conflict=on_conflict,
            wait_timeout=wait_timeout,
            on_abort=on_abort,
        )

    def prefill(
        self,
        model_input: LanguageModelInput,
        *,
        session: str | None = None,
        ttl: TTL = None,
        on_progress: Callable[[int, int], None] | None = None,
        timeout: float | None = None,
    ) -> str:
        """Reads without answering, and stores the state durably.

        Args:
            model_input: Messages (through the chat template), or a text (as it stands). Of a
                transcript of which the session holds the beginning only what is new is read.
            session: A session to read into, from its head on, once its turns that came before have
                ended; ``None`` for a state of its own.
            ttl: Time to live of the state, or of the session.
            on_progress: In place of the bar that `progress` draws, called with (tokens read, tokens
                to read) as a long text is read, on another thread, in the caller's context. To wait
                in it for an answer of this model is an `EngineError`, and for a turn of `session` a
                `SessionConflict`.
            timeout: Seconds for all of it but the store's writing; ``None`` for the model's own
                `timeout`.

        Returns:
            The reference of the warm state.

        Raises:
            DeadlineExceeded: The reading took longer than `timeout`; nothing is stored.
            SessionConflict: Turns of the session were still under way after that time, or its head
                moved meanwhile.
            StoreFull: The store has no room.
        """
        read = Prefill(self, model_input, session, ttl, on_progress, timeout, self.keep_reasoning)
        return run(read.steps(), self.store)

    async def aprefill(
        self,
        model_input: LanguageModelInput,
        *,
        session: str | None = None,
        ttl: TTL = None,
        on_progress: Callable[[int, int], None] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 # the sync form's, and the engine keeps it
    ) -> str:
        """As `prefill`, without blocking the event loop.

        Cancelled, the reading ends at once, and nothing is stored. Where the cancellation comes as
        the state is being written, it is stored, and its reference is returned.
        """
        read = Prefill(self, model_input, session, ttl, on_progress, timeout, self.keep_reasoning)
        return await arun(read.steps(), self.store)

    def pin_prefix(self, model_input: LanguageModelInput, *, name: str) -> int:
        """Reads what many prompts begin with, and keeps its state in the prefix cache for good.

        It is neither evicted nor expires until `PrefixStateCache.unpin`. With a disk tier it
        survives restarts, and is loaded along with the model.

        Args:
            model_input: Messages, such as a system prompt with examples, or a text for `RWKVLLM`.
            name: Under which it is pinned; another prefix of that name is let go.

        Returns:
            Number of tokens that did not have to be read.

        Raises:
            ValueError: There is no prefix cache, or the messages hold a marker.
            StoreFull: The cache has no room beside what is pinned already.

        Example:
            >>> chat.pin_prefix([SystemMessage("You are ...")], name="support")  # doctest: +SKIP
        """
        cache = self.prefix_cache
        if cache is None:
            raise ValueError("prefix_cache=False leaves nothing to pin a prefix in.")
        loaded = self.loaded()
        if isinstance(model_input, str):
            planned = turn.plan_text(
                model_input, template=loaded.template, store=self.answer_store, zero=loaded.zero
            )
        else:
            planned = turn.plan(
                to_messages(model_input),
                template=loaded.template,
                store=self.answer_store,
                zero=loaded.zero,
                answer=False,
                thoughts=self.keep_reasoning,
            )
        if planned.reach < len(planned.ids) or planned.base_ref is not None:
            raise ValueError("A pinned prefix begins from nothing: leave state markers out.")
        with LateBar(f"Reading {name}", progress=self.progress) as bar:
            request = Request(
                base=planned.base,
                prompt=planned.ids,
                on_progress=bar.tell,
                deadline=self.timeout,
                caching=planned.caching(cache, self.cache_salt),
            )
            done = loaded.engine.submit(request).result()
        namespace = Namespace.of(planned.base, self.cache_salt)
        cache.pin(namespace, planned.ids, CachedState(done.state), name)
        return done.reused

    # -- the way down and up -----------------------------------------------------------------

    def plan_call(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        options: Mapping[str, Any],
    ) -> tuple[Engine, ChatCall]:
        """Plans a call, for who asks the engine itself: settings, options, messages make a request.

        Args:
            messages: What is said; a state's marker may be among them.
            stop: Texts that end the answer.
            options: Other options of a call.

        Returns:
            The engine, for ``submit(call.request)``, and the call, which reads its answer.

        Raises:
            RWKVStateError, ValueError: The call cannot be had.
        """
        loaded = self.loaded()
        template, ask = loaded.template, self._ask(options)
        constraint = ask.constraint(template.tools)
        if constraint is not None:
            loaded.engine.prepare(constraint, loaded.tokenizer)
        planned = turn.plan(
            without_strangers(messages),
            template=template,
            store=self.answer_store,
            zero=loaded.zero,
            lines=ask.system(template),
            reasoning=ask.reasoning_before(constraint),
            thoughts=ask.keep_reasoning,
        )
        request = self._request(loaded, planned, stop, options)
        return loaded.engine, ChatCall.of(template, planned, request, ask, constraint)

    def _result(self, call: ChatCall, done: Done) -> ChatResult:
        message = call.message(done)
        about, usage = self._finish(call, done, message, call.logprobs(done, message))
        message.response_metadata = about
        message.usage_metadata = usage
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last_chunk(self, call: ChatCall, done: Done) -> ChatGenerationChunk:
        about, usage = self._finish(call, done, call.message(done), ())
        message = AIMessageChunk(
            content="", response_metadata=about, usage_metadata=usage, chunk_position="last"
        )
        return ChatGenerationChunk(message=message)

    def _finish(
        self, call: ChatCall, done: Done, message: AIMessage, logprobs: Sequence[TokenLogprob]
    ) -> tuple[dict[str, Any], UsageMetadata]:
        """Stages and files the state behind an answer; returns what the message says of it."""
        ref = turn.stage(call.plan, done, self.answer_store)
        file_answer(call.plan, done, ref, self.answer_store, message)
        return call.about(done, ref, model=self.model, logprobs=logprobs)
