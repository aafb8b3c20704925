"""Many users at once: each has a session of its own, and each is told only what it said."""

import asyncio

from langchain_rwkv_state import ChatRWKV

USERS = {"u1": ("Marlow", "Lisbon"), "u2": ("Ottilie", "Bergen"), "u3": ("Ruben", "Kyoto")}

chat = ChatRWKV(model="demo", temperature=0)


async def tell(user: str) -> None:
    name, city = USERS[user]
    talk = chat.with_session(f"many-users/{user}", ttl=3600)
    await talk.ainvoke(f"My name is {name}.")
    await talk.ainvoke(f"I live in {city}.")


async def ask(user: str) -> str:
    talk = chat.with_session(f"many-users/{user}", ttl=3600)
    name = await talk.ainvoke("What is my name?")
    city = await talk.ainvoke("Where do I live?")
    return f"{user}  {name.text} {city.text}"


async def main() -> None:
    await asyncio.gather(*map(tell, USERS))  # their turns interleave
    for line in await asyncio.gather(*map(ask, USERS)):
        print(line)
    print("\nsessions:", ", ".join(await chat.store.asessions("many-users/")))


asyncio.run(main())
