"""`RWKVLLM` completes texts: RWKV as a LangChain text model that goes on from a state.

It reads a text as it stands, without the chat template. The state to go on from comes as
``state=``, or as a marker among messages, which this class takes out when it turns its input into a
prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import BaseMessage, get_buffer_string
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from langchain_core.runnables import RunnableConfig

from langchain_rwkv_state.base import CALL_OPTIONS, RWKVModel, seen
from langchain_rwkv_state.conversation.filings import file_answer
from langchain_rwkv_state.conversation.lanes import each_as_completed
from langchain_rwkv_state.engine import (
    Delta,
    Done,
    Engine,
    Event,
    Request,
    RequestHandle,
    TokenLogprob,
)
from langchain_rwkv_state.loaded import Loaded
from langchain_rwkv_state.prompt import plan as turn
from langchain_rwkv_state.prompt.logprobs import logprobs_metadata
from langchain_rwkv_state.prompt.markers import (
    STATE_KEY,
    as_model_input,
    handed_out,
    is_marker,
    marker,
    without_markers,
    without_strangers,
)
from langchain_rwkv_state.prompt.plan import PromptPlan


class _Continuation(str):
    """A prompt's text that remembers the markers it came with, through LangChain's `str`."""

    __slots__ = ("markers",)
    markers: tuple[BaseMessage, ...]


class _ContinuationValue(StringPromptValue):
    """A prompt value that gives a `_Continuation`."""

    markers: tuple[BaseMessage, ...]

    def to_string(self) -> str:
        """Returns the text, with its markers attached."""
        text = _Continuation(self.text)
        text.markers = self.markers
        return text


class RWKVLLM(RWKVModel, BaseLLM):
    r"""RWKV as a text completion model that goes on from a state.

    Setup:
        ``pip install langchain-rwkv-state``; the built-in ``demo`` model needs nothing else.

    Key init args:
        Those of `ChatRWKV`, but for ``reasoning`` and ``keep_reasoning``. A text is read as it
        stands, without the chat template, so ``stop`` says where an answer ends.

    Instantiate:
        >>> from langchain_rwkv_state import RWKVLLM
        >>> llm = RWKVLLM(model="demo", temperature=0, max_tokens=20)  # doctest: +SKIP

    Invoke:
        >>> llm.invoke("User: Good morning.\n\nAssistant:", stop=["\n\n"])  # doctest: +SKIP

    States:
        >>> ref = ChatRWKV(model="demo").prefill("The capital of France")  # doctest: +SKIP
        >>> llm.invoke(" is", state=ref)  # doctest: +SKIP
        >>> llm.batch([" is", " was"], state=ref)  # both from it  # doctest: +SKIP

    Markers:
        >>> llm.invoke([marker(ref), HumanMessage("Where is it?")])  # doctest: +SKIP

    Stream:
        >>> for text in llm.stream("Once upon a time"):  # doctest: +SKIP
        ...     print(text, end="")

    Async:
        >>> await llm.ainvoke("Once upon a time")  # doctest: +SKIP

    Batch:
        >>> llm.batch(["Once", "There was"])  # in one pass of the model  # doctest: +SKIP

    Generation info:
        >>> found = llm.generate(["Once"]).generations[0][0]  # doctest: +SKIP
        >>> found.generation_info["finish_reason"]  # doctest: +SKIP
        'length'

        ``finish_reason`` is ``stop`` or ``length``, and ``rwkv_state`` the reference of the state
        behind the answer, for ``state=`` of the next call. It is kept in memory for a short while;
        `StateStore.keep` or a session makes it last. ``llm_output`` counts the tokens. A call with
        ``logprobs=True`` gets ``logprobs``, in the form that `ChatRWKV` has.
    """

    cache: Any = False
    """Apart from LangChain's global cache: a hit there would name a state that may be gone."""

    _call_options = CALL_OPTIONS

    @property
    def _llm_type(self) -> str:
        return "rwkv-state"

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
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Returns the model's token ids of a text."""
        return self.loaded().tokenizer.encode(text)

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Returns how many tokens the messages take as text; markers take none."""
        return super().get_num_tokens_from_messages(without_markers(messages), tools)

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        value = super()._convert_input(as_model_input(model_input))
        if not isinstance(value, ChatPromptValue) or not any(map(is_marker, value.messages)):
            return value
        markers = tuple(filter(is_marker, without_strangers(value.messages)))
        text = get_buffer_string(without_markers(value.messages))
        return _ContinuationValue(text=text, markers=markers)

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, *args: Any, **kwargs: Any
    ) -> LLMResult:
        """Answers prompts; past LangChain's cache where they go on from states."""
        llm = self._past_the_cache() if _has_state(prompts, kwargs) else self
        return super(RWKVLLM, llm).generate(prompts, stop, *args, **seen(kwargs))

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, *args: Any, **kwargs: Any
    ) -> LLMResult:
        """Answers prompts; past LangChain's cache where they go on from states."""
        llm = self
        if _has_state(prompts, kwargs):
            llm = await asyncio.to_thread(self._past_the_cache)
        return await super(RWKVLLM, llm).agenerate(prompts, stop, *args, **seen(kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """Streams an answer; options are handed on as they may be traced."""
        yield from super().stream(input, config, stop=stop, **seen(kwargs))

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[str]:
        """Streams an answer; options are handed on as they may be traced."""
        async for chunk in super().astream(input, config, stop=stop, **seen(kwargs)):
            yield chunk

    def batch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Yields (place, answer) as the answers come; left early, it ends those under way."""
        options = {**kwargs, "return_exceptions": return_exceptions}
        return each_as_completed(self.invoke, inputs, config, **options)

    def _past_the_cache(self) -> Self:
        """Returns this model without a cache, whose keys leave out which state a call is for."""
        if self.cache is False:
            return self
        return self.model_copy(update={"cache": False})

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> LLMResult:
        loaded, prepared = self._prepare(prompts, stop, kwargs)
        handles: list[RequestHandle] = []
        try:
            # All are taken on before one is waited for: they are answered together.
            handles += (loaded.engine.submit(request) for _, request in prepared)
            answers = [handle.result() for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()
        return self._result([planned for planned, _ in prepared], answers)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> LLMResult:
        loaded, prepared = await asyncio.to_thread(self._prepare, prompts, stop, kwargs)
        handles: list[RequestHandle] = []
        try:
            # All are taken on before one is waited for: they are answered together.
            handles += (loaded.engine.submit(request) for _, request in prepared)
            answers = [await handle.aresult() for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()
        return await asyncio.to_thread(self._result, [planned for planned, _ in prepared], answers)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        loaded, [(planned, request)] = self._prepare([prompt], stop, kwargs)
        handle = loaded.engine.submit(request)
        try:
            for event in handle:
                chunk = self._chunk(planned, event)
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        finally:
            handle.cancel()

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        loaded, [(planned, request)] = await asyncio.to_thread(
            self._prepare, [prompt], stop, kwargs
        )
        handle = loaded.engine.submit(request)
        try:
            async for event in handle:
                if isinstance(event, Delta):
                    chunk = self._chunk(planned, event)
                else:
                    chunk = await asyncio.to_thread(self._chunk, planned, event)
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        finally:
            handle.cancel()

    def plan_call(
        self, prompt: str, stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> tuple[Engine, PromptPlan, Request]:
        """Plans a call, for who asks the engine itself, as `ChatRWKV.plan_call` does.

        Args:
            prompt: The text that is gone on from.
            stop: Texts that end the answer.
            options: Other options of a call, ``state`` among them.

        Returns:
            The engine, for ``submit(request)``, what is read, and the request.

        Raises:
            RWKVStateError, ValueError: The call cannot be had.
        """
        loaded, [(planned, request)] = self._prepare([prompt], stop, options)
        return loaded.engine, planned, request

    def _prepare(
        self, prompts: Sequence[str], stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> tuple[Loaded, list[tuple[PromptPlan, Request]]]:
        """Plans one reading for each prompt.

        Raises:
            ValueError: ``state`` is a list of another length than `prompts`.
        """
        loaded, rest = self.loaded(), dict(options)
        state = rest.pop("state", None)
        refs = list(state) if isinstance(state, (list, tuple)) else [state] * len(prompts)
        if len(refs) != len(prompts):
            raise ValueError(
                f"There are {len(refs)} states for {len(prompts)} prompts: pass one each."
            )
        prepared = []
        for prompt, ref in zip(prompts, refs, strict=True):
            known = list(getattr(prompt, "markers", ()))
            if ref is not None:
                if any(map(handed_out, known)):
                    raise ValueError(
                        "A history's marker says where this call goes on from, and so does state=: "
                        "leave one of them out."
                    )
                known.append(marker(ref))
            planned = turn.plan_text(
                str(prompt),
                after=known,
                template=loaded.template,
                store=self.answer_store,
                zero=loaded.zero,
            )
            prepared.append((planned, self._request(loaded, planned, stop, rest)))
        return loaded, prepared

    def _chunk(self, planned: PromptPlan, event: Event) -> GenerationChunk:
        if isinstance(event, Delta):
            info = logprobs_metadata(event.logprobs) if event.logprobs else None
            return GenerationChunk(text=event.text, generation_info=info)
        return GenerationChunk(text="", generation_info=self._finish(planned, event, ()))

    def _finish(
        self, planned: PromptPlan, done: Done, logprobs: Sequence[TokenLogprob]
    ) -> dict[str, Any]:
        """Stages and files the state behind an answer; returns the answer's information.

        Args:
            planned: What was read.
            done: The answer.
            logprobs: Tokens that it says, too, how likely they were, where that was asked for.
        """
        ref = turn.stage(planned, done, self.answer_store)
        file_answer(planned, done, ref, self.answer_store)
        known = {} if done.logprobs is None else logprobs_metadata(logprobs)
        return {"finish_reason": done.finish_reason, STATE_KEY: ref, **known}

    def _result(self, all_planned: Sequence[PromptPlan], answers: Sequence[Done]) -> LLMResult:
        generations = [
            [
                Generation(
                    text=done.text,
                    generation_info=self._finish(planned, done, done.logprobs or ()),
                )
            ]
            for planned, done in zip(all_planned, answers, strict=True)
        ]
        read = sum(one.base.n_tokens + len(one.ids) for one in all_planned)
        sampled = sum(done.answer_tokens for done in answers)
        usage = {
            "prompt_tokens": read,
            "completion_tokens": sampled,
            "total_tokens": read + sampled,
        }
        return LLMResult(
            generations=list(generations),
            llm_output={"model_name": self.model, "token_usage": usage},
        )


def _has_state(prompts: Sequence[str], options: dict[str, Any]) -> bool:
    """Says whether a call goes on from a state, named in its options or by markers."""
    marked = any(getattr(prompt, "markers", ()) for prompt in prompts)
    return marked or options.get("state") is not None
