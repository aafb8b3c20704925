"""`RWKVLLM`: plain completion, with no chat template, that goes on from a state."""

from langchain_rwkv_state import RWKVLLM

llm = RWKVLLM(model="demo", temperature=0, stop=["\n"])

# Two texts are read and completed; each answer names the state behind it.
told = [
    f"User: My name is {name}.\n\nAssistant: Nice to meet you," for name in ("Marlow", "Ottilie")
]
refs = []
for text, [answer] in zip(told, llm.generate(told).generations, strict=True):
    refs.append((answer.generation_info or {})["rwkv_state"])
    print(f"{text!r} -> {answer.text!r}\n  state {refs[-1][:20]}...")

# One prompt from either state: what was read before need not be said again.
prompt = "\n\nUser: What is my name?\n\nAssistant: Your name is"
print(f"{prompt!r} from each:")
for ref in refs:
    print(f"  {llm.invoke(prompt, state=ref)!r}")

# A stream goes on from a state as well.
print("".join(llm.stream(" Your name is", state=refs[0])).strip())
