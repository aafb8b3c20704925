"""The cache with small random states: finding, keeping, forgetting, the disk, and what it says."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_rwkv_state import DiskStateStore, PrefixStateCache, _registry
from langchain_rwkv_state.errors import StoreFull
from langchain_rwkv_state.prefix_cache import CachedState, Hit, Namespace, default_cache
from langchain_rwkv_state.prefix_cache import cache as module
from langchain_rwkv_state.prefix_cache.disk_tier import DiskTier
from langchain_rwkv_state.state import Derivation, StateLayout
from tests.helpers.states import SetClock, random_state

LAYOUT = StateLayout.of(7, n_layer=1, n_embd=16, head_size=16)
NAMESPACE = Namespace("model")
A = tuple(range(100, 150))
B = (*A, *range(200, 240))


def kept(ids, *, logits=False) -> CachedState:
    state = random_state(ids, layout=LAYOUT)
    return CachedState(state, torch.arange(32, dtype=torch.float32) + len(ids) if logits else None)


NBYTES = kept(A).nbytes


def found(cache: PrefixStateCache, *args: Any, **options: Any) -> Hit:
    """Looks up, and wants something to be found."""
    hit = cache.lookup(*args, **options)
    assert hit is not None
    return hit


@pytest.fixture
def cache():
    made = PrefixStateCache(ram_bytes=10 * NBYTES)
    yield made
    made.close()


@pytest.fixture
def on_disk(tmp_path):
    made = []

    def make(**options):
        cache = PrefixStateCache(
            **{"ram_bytes": 10 * NBYTES, "disk": tmp_path / "prefixes", **options}
        )
        made.append(cache)
        return cache

    yield make
    for cache in made:
        cache.close()


class TestFinding:
    def test_the_deepest_state_on_the_way(self, cache):
        cache.insert(NAMESPACE, A, kept(A))
        cache.insert(NAMESPACE, B, kept(B))
        hit = cache.lookup(NAMESPACE, (*B, 1, 2))
        assert (hit.n_tokens, hit.tier) == (len(B), "ram")
        assert hit.cached.state == kept(B).state
        assert found(cache, NAMESPACE, (*A, 1)).n_tokens == len(A)
        assert cache.lookup(NAMESPACE, (1, *A)) is None

    def test_no_state_behind_the_limit(self, cache):
        cache.insert(NAMESPACE, A, kept(A))
        cache.insert(NAMESPACE, B, kept(B))
        assert cache.lookup(NAMESPACE, (*B, 1), limit=len(B) - 1).n_tokens == len(A)
        assert cache.lookup(NAMESPACE, B, limit=0) is None

    def test_a_whole_prompt_is_answered_only_with_its_logits(self, cache):
        cache.insert(NAMESPACE, A, kept(A))
        assert cache.lookup(NAMESPACE, A) is None
        assert found(cache, NAMESPACE, A, answer=False).n_tokens == len(A)
        cache.insert(NAMESPACE, A, kept(A, logits=True))
        logits = found(cache, NAMESPACE, A).cached.logits
        assert logits is not None
        assert logits[0] == len(A)

    @pytest.mark.parametrize(
        "other", [Namespace("another"), Namespace("model", "base"), Namespace("model", salt="s")]
    )
    def test_roots_are_apart(self, cache, other):
        cache.insert(NAMESPACE, A, kept(A))
        assert cache.lookup(other, B) is None

    def test_roots_of_states(self):
        zero = random_state([], layout=LAYOUT)
        read = random_state([1, 2], layout=LAYOUT)
        assert Namespace.of(zero) == Namespace("model")
        assert Namespace.of(read) != Namespace.of(random_state([1, 3], layout=LAYOUT))
        assert Namespace.of(zero, "a") != Namespace.of(zero, "b") != Namespace.of(zero)
        assert "secret" not in repr(Namespace.of(zero, "secret"))
        rooted = read.derivation.rooted("blend")
        assert Derivation("model") != rooted


class TestForgetting:
    def test_the_least_worth_goes_first(self):
        cache = PrefixStateCache(ram_bytes=2 * NBYTES)
        cache.insert(NAMESPACE, A, kept(A))
        cache.insert(NAMESPACE, (*A, 7), kept((*A, 7)))  # saves one token beside the other
        cache.insert(NAMESPACE, (9,) * 20, kept((9,) * 20))
        assert found(cache, NAMESPACE, (*A, 7, 8)).n_tokens == len(A)
        assert found(cache, NAMESPACE, (9,) * 21).n_tokens == 20
        assert cache.stats().evictions["ram"] == 1

    def test_what_does_not_fit_is_not_kept(self):
        cache = PrefixStateCache(ram_bytes=NBYTES - 1)
        assert not cache.insert(NAMESPACE, A, kept(A))
        assert not cache.fits(NBYTES)
        assert cache.stats().entries == 0

    def test_states_expire_and_a_hit_renews(self):
        clock = SetClock()
        cache = PrefixStateCache(ram_bytes=10 * NBYTES, ttl=100, clock=clock)
        cache.insert(NAMESPACE, A, kept(A))
        cache.insert(NAMESPACE, B, kept(B))
        clock.advance(60)
        assert found(cache, NAMESPACE, (*B, 1)).n_tokens == len(B)
        clock.advance(60)  # the one above was not consumed, so it was not renewed
        assert cache.lookup(NAMESPACE, (*A, 1)) is None
        assert found(cache, NAMESPACE, (*B, 1)).n_tokens == len(B)
        assert cache.stats().expired == 1
        assert cache.stats().misses == {"expired": 1}

    def test_clear_forgets_all(self, cache):
        cache.insert(NAMESPACE, A, kept(A))
        cache.pin(NAMESPACE, B, kept(B), "b")
        cache.clear()
        stats = cache.stats()
        assert (stats.entries, stats.nbytes["ram"], stats.pinned) == (0, 0, ())

    @settings(max_examples=30)
    @given(st.integers(0, 2**32), st.integers(0, 6))
    def test_what_is_found_is_right_and_budgets_hold(self, seed, room):
        rng, clock = random.Random(seed), SetClock()
        cache = PrefixStateCache(ram_bytes=room * NBYTES + 7, ttl=50, clock=clock)
        for _ in range(80):
            ids = tuple(rng.choices((1, 2), k=rng.randrange(1, 7)))
            match rng.randrange(5):
                case 0 | 1:
                    cache.insert(NAMESPACE, ids, kept(ids, logits=rng.random() < 0.3))
                case 2:
                    depth = cache.depth(NAMESPACE, ids, limit=len(ids))
                    hit = cache.lookup(NAMESPACE, ids)
                    assert depth == (0 if hit is None else hit.n_tokens)
                    if hit is not None:
                        assert hit.cached.state == kept(ids[: hit.n_tokens]).state
                        assert hit.n_tokens < len(ids) or hit.cached.logits is not None
                case 3:
                    cache.note(NAMESPACE, ids)
                case 4:
                    clock.advance(rng.random() * 10)
            assert cache.stats().nbytes["ram"] <= room * NBYTES + 7

    def test_budgets_hold_under_threads(self, on_disk):
        cache = on_disk(ram_bytes=5 * NBYTES, disk_bytes=100_000)
        over = []

        def work(seed):
            rng = random.Random(seed)
            for _ in range(60):
                ids = tuple(rng.choices(range(3), k=40 + rng.randrange(3)))
                cache.insert(NAMESPACE, ids, kept(ids))
                hit = cache.lookup(NAMESPACE, (*ids, 5))
                if hit is not None and hit.cached.state != kept((*ids, 5)[: hit.n_tokens]).state:
                    over.append("wrong")
                stats = cache.stats()
                over.extend(t for t in stats.nbytes if stats.nbytes[t] > stats.budgets[t])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert cache.flush()
        files = sum(f.stat().st_size for f in cache.directory.glob("??/*"))
        assert not over
        assert 0 < files <= 100_000
        assert cache.stats().errors == 0


class TestPins:
    def test_are_not_evicted_and_do_not_expire(self):
        clock = SetClock()
        cache = PrefixStateCache(ram_bytes=3 * NBYTES, ttl=10, clock=clock)
        cache.pin(NAMESPACE, A, kept(A), "system")
        for number in range(20):
            ids = (number,) * 50
            cache.insert(NAMESPACE, ids, kept(ids))
        clock.advance(1000)
        assert found(cache, NAMESPACE, B).n_tokens == len(A)
        assert cache.stats().pinned == ("system",)

    def test_go_the_way_of_others_once_let_go(self):
        cache = PrefixStateCache(ram_bytes=NBYTES)
        cache.pin(NAMESPACE, A, kept(A), "system")
        assert not cache.insert(NAMESPACE, B, kept(B))
        assert cache.unpin("system")
        assert not cache.unpin("system")
        assert cache.insert(NAMESPACE, B, kept(B))
        assert cache.lookup(NAMESPACE, (*A, 1)) is None

    def test_that_do_not_fit_are_refused(self):
        cache = PrefixStateCache(ram_bytes=NBYTES)
        cache.pin(NAMESPACE, A, kept(A), "a")
        with pytest.raises(StoreFull, match="unpin"):
            cache.pin(NAMESPACE, B, kept(B), "b")
        with pytest.raises(ValueError, match="name"):
            cache.pin(NAMESPACE, B, kept(B), "")

    def test_a_name_stands_for_one_prefix(self, cache):
        cache.pin(NAMESPACE, A, kept(A), "system")
        cache.pin(NAMESPACE, B, kept(B), "system")
        assert [e.node.depth for e in cache._index.entries() if e.pin] == [len(B)]

    def test_survive_a_restart(self, on_disk):
        first = on_disk()
        first.pin(NAMESPACE, A, kept(A), "system")
        first.close()
        second = on_disk()
        assert second.warm("another model") == 0
        assert second.warm("model") == 1
        assert found(second, NAMESPACE, B).tier == "ram"
        assert second.stats().pinned == ("system",)
        second.unpin("system")
        second.close()
        assert on_disk().warm("model") == 0


class TestTheDisk:
    def test_what_one_cache_wrote_another_finds(self, on_disk):
        one, other = on_disk(), on_disk()
        assert other.lookup(NAMESPACE, B) is None
        one.insert(NAMESPACE, A, kept(A, logits=True))
        assert one.flush()
        assert found(other, NAMESPACE, B).tier == "disk"
        hit = other.lookup(NAMESPACE, A)
        assert hit.tier == "ram"
        assert hit.cached.state == kept(A).state
        assert hit.cached.logits is not None
        assert (hit.cached.logits == torch.arange(32) + len(A)).all()

    def test_caches_of_one_directory_share_its_database(self, on_disk):
        one, other = on_disk(), on_disk()
        one.insert(NAMESPACE, A, kept(A))
        assert one.flush()
        assert found(other, NAMESPACE, B).n_tokens == len(A)
        assert one._disk.tier is other._disk.tier
        one.close()
        assert other.insert(NAMESPACE, (9,) * 60, kept((9,) * 60))
        assert other.flush()
        assert other.stats().errors == 0
        assert found(on_disk(), NAMESPACE, (9,) * 61).n_tokens == 60

    def test_what_failed_for_one_is_opened_anew_by_all(self, on_disk):
        one, other = on_disk(), on_disk()
        assert one.lookup(NAMESPACE, B) is other.lookup(NAMESPACE, B) is None
        shared = one._disk.tier
        one._disk._fail(OSError("gone"))
        assert other.insert(NAMESPACE, A, kept(A))
        assert other.flush()
        assert other._disk.tier is not shared
        assert found(on_disk(), NAMESPACE, B).n_tokens == len(A)
        assert one._disk.tier is None  # for a while

    def test_the_same_entry_is_written_once(self, on_disk):
        caches = [on_disk() for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda cache: cache.insert(NAMESPACE, A, kept(A)), caches))
        assert all(cache.flush() for cache in caches)
        assert len(list(caches[0].directory.glob("??/*"))) == 1
        assert found(on_disk(), NAMESPACE, B).n_tokens == len(A)

    def test_what_saves_little_is_not_written(self, on_disk):
        cache = on_disk()
        cache.insert(NAMESPACE, (1, 2, 3), kept((1, 2, 3)))
        assert cache.flush()
        assert cache.stats().nbytes["disk"] == 0
        cache.lookup(NAMESPACE, (1, 2, 3, 4))  # but it is once it was of use
        assert cache.flush()
        assert cache.stats().nbytes["disk"] > 0

    def test_what_is_private_is_never_written(self, on_disk):
        cache = on_disk()
        cache.insert(NAMESPACE, A, kept(A), private=True)
        cache.lookup(NAMESPACE, B)
        assert cache.flush()
        assert cache.stats().nbytes["disk"] == 0

    def test_what_left_memory_is_still_on_disk(self, on_disk):
        cache = on_disk(ram_bytes=NBYTES)
        cache.insert(NAMESPACE, A, kept(A))
        assert cache.flush()
        cache.insert(NAMESPACE, (9,) * 60, kept((9,) * 60))
        assert found(cache, NAMESPACE, B).tier == "disk"

    def test_entries_expire(self, on_disk):
        clock = SetClock()
        cache = on_disk(ttl=100, clock=clock)
        cache.insert(NAMESPACE, A, kept(A))
        assert cache.flush()
        clock.advance(101)
        assert on_disk(ttl=100, clock=clock).lookup(NAMESPACE, B) is None
        assert cache.lookup(NAMESPACE, B) is None

    @pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign", "gone", "swap"])
    def test_a_damaged_file_is_a_miss_and_is_removed(self, on_disk, damage):
        one = on_disk()
        one.insert(NAMESPACE, A, kept(A))
        one.insert(NAMESPACE, (7,) * 50, kept((7,) * 50))
        assert one.flush()
        files = sorted(one.directory.glob("??/*"))
        for file, other in zip(files, reversed(files), strict=True):
            data = file.read_bytes()
            match damage:
                case "flip":
                    file.write_bytes(data[:-500] + bytes([data[-500] ^ 1]) + data[-499:])
                case "truncate":
                    file.write_bytes(data[:-1])
                case "empty":
                    file.write_bytes(b"")
                case "foreign":
                    file.write_bytes(b"GIF89a" * 100)
                case "gone":
                    file.unlink()
                case "swap" if file == files[0]:
                    file.write_bytes(other.read_bytes())
                    other.write_bytes(data)
        two = on_disk()
        assert two.lookup(NAMESPACE, B) is None
        assert two.lookup(NAMESPACE, (7,) * 51) is None
        stats = two.stats()
        assert stats.corrupt == (0 if damage == "gone" else 2)
        assert stats.errors == 0
        assert two.flush()
        if damage != "gone":  # a file may come after its row
            assert on_disk().stats().entries == 0
        assert two.insert(NAMESPACE, A, kept(A))
        assert found(two, NAMESPACE, B).n_tokens == len(A)

    def test_a_damaged_row_is_a_miss_and_is_removed(self, on_disk):
        one = on_disk()
        one.insert(NAMESPACE, A, kept(A))
        assert one.flush()
        tier = one._disk.tier
        [(key, data)] = tier._reader.scan(b"e", b"f")
        tier._transact(lambda rows: rows.put(key, data[:-1] + b"!"))
        two = on_disk()
        assert two.lookup(NAMESPACE, B) is None
        assert two.stats().corrupt == 1
        assert tier._reader.scan(b"e", b"f") == []

    def test_a_directory_that_cannot_be_used_is_a_miss(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        cache = PrefixStateCache(ram_bytes=10 * NBYTES, disk=tmp_path / "file" / "prefixes")
        assert cache.lookup(NAMESPACE, B) is None
        assert cache.insert(NAMESPACE, A, kept(A))
        assert found(cache, NAMESPACE, B).n_tokens == len(A)
        assert cache.stats().errors >= 1
        cache.close()

    def test_a_directory_that_goes_away_is_a_miss(self, on_disk, tmp_path):
        cache = on_disk(ram_bytes=NBYTES)
        cache.insert(NAMESPACE, A, kept(A))
        assert cache.flush()
        cache.insert(NAMESPACE, (9,) * 60, kept((9,) * 60))
        (tmp_path / "prefixes").rename(tmp_path / "elsewhere")
        assert cache.lookup(NAMESPACE, B) is None
        assert cache.stats().errors >= 1

    def test_the_budget_holds_and_the_least_worth_goes(self, on_disk):
        cache = on_disk(disk_bytes=30_000)
        for number in range(30):
            ids = (number,) * (40 + number)
            cache.insert(NAMESPACE, ids, kept(ids))
            assert cache.flush()
            assert cache.stats().nbytes["disk"] <= 30_000
        assert sum(f.stat().st_size for f in cache.directory.glob("??/*")) <= 30_000
        assert cache.stats().evictions["disk"] > 0
        again = on_disk(disk_bytes=30_000)
        assert found(again, NAMESPACE, (29,) * 80).n_tokens == 69
        assert again.lookup(NAMESPACE, (0,) * 80) is None

    def test_no_pickle_is_on_the_disk(self, on_disk):
        cache = on_disk()
        cache.insert(NAMESPACE, A, kept(A))
        assert cache.flush()
        modes = cache._disk.tier._backend.sql("SELECT DISTINCT mode, filename FROM Cache")
        assert modes == [(1, None)]


class TestReasons:
    def test_are_told_apart(self, cache):
        cache.insert(NAMESPACE, A, kept(A))
        assert cache.explain(NAMESPACE, A).cause is None
        assert cache.explain(NAMESPACE, (*A, 1)).text.startswith("50 of 51 tokens are kept")
        there = cache.explain(NAMESPACE, (*A[:10], 1, 2))
        assert (there.reused, there.known, there.cause) == (0, 10, "different")
        assert "from token 10 on" in there.text
        assert cache.explain(NAMESPACE, (1, 2)).cause == "cold"
        assert cache.explain(Namespace("new model"), B).cause == "other model"
        assert cache.explain(Namespace("model", salt="x"), B).cause == "other salt"
        assert cache.explain(Namespace("model", base="x"), B).cause == "other base"

    def test_of_what_had_to_go(self):
        cache = PrefixStateCache(ram_bytes=NBYTES)
        cache.insert(NAMESPACE, A, kept(A))
        cache.insert(NAMESPACE, (9,) * 200, kept((9,) * 200))
        assert cache.explain(NAMESPACE, B).cause == "evicted"
        cache.lookup(NAMESPACE, B)
        assert cache.stats().misses == {"evicted": 1}

    def test_are_counted(self, cache):
        cache.insert(NAMESPACE, A, kept(A))
        cache.lookup(NAMESPACE, B)
        cache.lookup(NAMESPACE, (1, 2))
        cache.lookup(NAMESPACE, (*A[:5], 1))
        cache.lookup(Namespace("new model"), B)
        cache.lookup(NAMESPACE, B, count=False)
        stats = cache.stats()
        assert (stats.lookups, stats.hits, stats.tokens_saved) == (4, 1, len(A))
        assert stats.misses == {"cold": 1, "different": 1, "other model": 1}
        assert cache.stats().misses == stats.misses


class TestReadingOnly:
    """What a process finds that was warmed, and that it leaves it as it is."""

    @pytest.fixture
    def warmed(self, on_disk, tmp_path):
        cache = on_disk()
        cache.pin(NAMESPACE, A, kept(A), "support")
        cache.insert(NAMESPACE, B, kept(B))
        cache.close()
        return tmp_path / "prefixes"

    @staticmethod
    def _rows(directory):
        disk = DiskTier(directory, 1 << 20)
        rows = {(row.key, row.pin, row.uses, row.used, row.expires) for row in disk.rows()}
        disk.close()
        return rows

    def test_what_is_pinned_is_found_and_nothing_else(self, warmed):
        cache = PrefixStateCache.reading(warmed)
        assert cache.warm(NAMESPACE.fingerprint) == 0  # it waits on disk until it is asked for
        assert cache.stats().nbytes["ram"] == 0
        hit = found(cache, NAMESPACE, B)
        assert (hit.n_tokens, hit.tier) == (len(A), "disk")
        assert found(cache, NAMESPACE, A, answer=False).tier == "ram"
        assert cache.lookup(Namespace("model", salt="shop"), B) is None
        cache.close()

    def test_nothing_is_written(self, warmed):
        before = self._rows(warmed)
        cache = PrefixStateCache.reading(warmed)
        found(cache, NAMESPACE, A, answer=False)
        C = tuple(range(500, 600))
        cache.insert(NAMESPACE, C, kept(C))
        found(cache, NAMESPACE, C, answer=False)
        cache.pin(NAMESPACE, C, kept(C), "own")
        assert cache.unpin("support")
        cache.clear()
        assert cache.lookup(NAMESPACE, A) is None
        cache.close()
        assert self._rows(warmed) == before
        assert len(before) == 2

    def test_what_is_damaged_is_passed_over_and_stays(self, warmed, on_disk):
        for file in warmed.glob("??/*.safetensors"):
            file.write_bytes(file.read_bytes()[:-1])
        before = self._rows(warmed)
        cache = PrefixStateCache.reading(warmed)
        assert cache.lookup(NAMESPACE, A, answer=False) is None
        assert cache.lookup(NAMESPACE, A, answer=False) is None
        assert (cache.stats().corrupt, cache.stats().errors) == (1, 0)
        cache.close()
        assert self._rows(warmed) == before

    def test_a_directory_that_is_not_there_is_not_made(self, tmp_path, caplog):
        cache = PrefixStateCache.reading(tmp_path / "prefixes")
        assert cache.lookup(NAMESPACE, A) is None
        assert "Nothing is kept in" in caplog.text
        assert list(tmp_path.iterdir()) == []

    def test_no_file_is_changed(self, warmed):
        def files():
            found = [each for each in warmed.rglob("*") if each.is_file()]
            # SQLite makes empty companions of a database wherever it may.
            return {each: each.lstat().st_mtime_ns for each in found if "db-" not in each.name}

        before = files()
        cache = PrefixStateCache.reading(warmed)
        assert found(cache, NAMESPACE, B).n_tokens == len(A)
        cache.close()
        assert files() == before


class TestTheDefault:
    @pytest.fixture
    def home(self, tmp_path, monkeypatch):
        """The user's own directory, and no cache made yet."""
        monkeypatch.setattr(_registry, "_KEPT", _registry.Registry())
        monkeypatch.setattr(module, "default_cache_directory", lambda: tmp_path / "prefixes")
        monkeypatch.delenv(module.DIRECTORY_VARIABLE, raising=False)
        return tmp_path / "prefixes"

    def test_without_anything_warmed_is_in_memory_and_makes_no_directory(self, home):
        assert default_cache().directory is None
        assert not home.exists()

    def test_reads_what_was_warmed(self, home, on_disk):
        on_disk().pin(NAMESPACE, A, kept(A), "support")
        assert repr(default_cache()) == f"PrefixStateCache.reading({str(home)!r})"
        assert found(default_cache(), NAMESPACE, B).n_tokens == len(A)

    @pytest.mark.parametrize("named", ["", "elsewhere"])
    def test_goes_by_the_variable_where_it_is_set(self, home, on_disk, monkeypatch, named):
        on_disk().pin(NAMESPACE, A, kept(A), "support")
        monkeypatch.chdir(home.parent)
        monkeypatch.setenv(module.DIRECTORY_VARIABLE, named)
        assert default_cache().directory == (home.parent / named if named else None)
        assert default_cache().lookup(NAMESPACE, B) is None

    def test_is_in_memory_where_the_users_directory_cannot_be_looked_into(self, home, monkeypatch):
        far = home / ("n" * 300)  # refused even to root, as others' directories are to anybody else
        monkeypatch.setattr(module, "default_cache_directory", lambda: far)
        assert default_cache().directory is None

    def test_goes_on_where_what_was_warmed_is_damaged(self, home, on_disk):
        cache = on_disk()
        cache.pin(NAMESPACE, A, kept(A), "support")
        cache.close()
        database = home / "cache.db"
        database.write_bytes(database.read_bytes().replace(b"CREATE", b"CR\xa0ATE"))
        assert default_cache().lookup(NAMESPACE, B) is None
        assert default_cache().stats().errors == 1

    def test_is_in_memory_where_the_users_directory_is_a_session_store(self, home, caplog):
        DiskStateStore(home).close()
        assert default_cache().directory is None
        assert "is a session store" in caplog.text
