"""A chain with a history: the state is the memory, behind an output parser too."""

import warnings

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory

from langchain_rwkv_state import ChatRWKV, RWKVStateHistory

warnings.filterwarnings("ignore", "RunnableWithMessageHistory")  # it is to go in LangChain 2.0

chat = ChatRWKV(model="demo", temperature=0)
prompt = ChatPromptTemplate.from_messages(
    [("system", "Talk like a pirate."), MessagesPlaceholder("history"), ("human", "{question}")]
)
chain = RunnableWithMessageHistory(
    prompt | chat | StrOutputParser(),
    lambda session_id: RWKVStateHistory(session_id, store=chat.store, ttl=3600),
    input_messages_key="question",
    history_messages_key="history",
)

for question in ("My name is Marlow.", "I live in Lisbon.", "What is my name?"):
    answer = chain.invoke({"question": question}, {"configurable": {"session_id": "chain"}})
    print(f"you   {question}\nrwkv  {answer}")
