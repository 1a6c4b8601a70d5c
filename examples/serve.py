"""A client of a packed student that is served, by OpenAI's own package.

    pip install 'hf-bitdistill[serving]'
    bitdistill serve packed/ --port 8000        # in another terminal
    python examples/serve.py packed/ "Why is the sky blue?"

Any program that speaks OpenAI's API is such a client: give it the address, a key of any kind, and the model's name as it was served.
"""

import argparse

from openai import OpenAI


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="as it was given to `bitdistill serve`")
parser.add_argument("prompt")
parser.add_argument("--url", default="http://localhost:8000/v1")
parser.add_argument("--max_tokens", type=int, default=256)
parser.add_argument("--stop", help="a text with which the answer ends")
options = parser.parse_args()

client = OpenAI(base_url=options.url, api_key="none")
stream = client.chat.completions.create(
    model=options.model,
    messages=[{"role": "user", "content": options.prompt}],
    max_tokens=options.max_tokens,
    temperature=0,
    stop=options.stop,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
