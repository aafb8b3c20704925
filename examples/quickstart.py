"""A conversation with a name: it is durable, so run this twice and the second run remembers."""

from langchain_rwkv_state import ChatRWKV

chat = ChatRWKV(model="demo", temperature=0)
talk = chat.with_session("quickstart", ttl=3600)

if talk.head is None:
    print("This session is new. Run this again within an hour, and it will not be.\n")
    lines = ["My name is Marlow.", "I live in Lisbon.", "What is my name?"]
else:
    print("This session has a past: nothing is told, only asked.\n")
    lines = ["What is my name?", "Where do I live?"]

for line in lines:
    print(f"you   {line}")
    print("rwkv  ", end="")
    for chunk in talk.stream(line):
        print(chunk.text, end="", flush=True)
    print()
