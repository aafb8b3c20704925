"""The package of states: names that wait for PyTorch."""

import subprocess
import sys

from langchain_rwkv_state import DiskStateStore
from tests.helpers.states import random_state


def test_a_store_is_looked_into_without_pytorch(tmp_path):
    with DiskStateStore(tmp_path / "store") as store:
        store.commit("ada", store.stage(random_state([1])), None)
    code = (
        "import sys\n"
        "from langchain_rwkv_state import DiskStateStore\n"
        f"with DiskStateStore({str(tmp_path / 'store')!r}) as store:\n"
        "    store.append_unread('bob', ['\"hello\"'])\n"
        "    assert store.sessions() == ['ada', 'bob']\n"
        "    assert store.session('ada').model.startswith('RWKV-')\n"
        "    assert store.session('bob').n_turns == 0\n"
        "    assert store.log('bob') == []\n"
        "    store.prune(), store.stats()\n"
        "    assert store.delete_session('bob')\n"
        "heavy = {'torch', 'numpy', 'langchain_core'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
