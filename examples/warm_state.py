"""A warm state: a long system prompt is read once, and each question starts behind it."""

from langchain_core.messages import HumanMessage, SystemMessage

from langchain_rwkv_state import ChatRWKV, marker

SYSTEM = (
    "Your name is Mirabel. You are a careful assistant who listens well. "
    "Answer in short sentences. Always be polite and patient with the user. Never tell a lie. "
    "Use plain words. Be honest. "
    "Your answers are read by children. Do not use bad words. Write in full sentences. "
    "It is fine to make a small joke now and then. Talk like a pirate."
)

chat = ChatRWKV(model="demo", temperature=0)
ref = chat.prefill([SystemMessage(SYSTEM)], ttl=3600)
print(f"warm state {ref[:20]}...\n")

for question in ("What is your name?", "How are you?", "What is my name?"):
    answer = chat.invoke([marker(ref), HumanMessage(question)])
    usage = answer.usage_metadata
    assert usage is not None
    known = usage["input_token_details"]["cache_read"]
    print(f"you   {question}\nrwkv  {answer.text}")
    print(f"      {usage['input_tokens'] - known} tokens read, {known} known from the state\n")
