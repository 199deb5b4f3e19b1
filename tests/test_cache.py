"""The cache of stages where several runs share it."""

import threading

from recapture_jax.cache import StageCache


def test_one_run_at_a_time_makes_an_entry(tmp_path):
    """Runs over one clip want the same LoRA: the later ones wait, and then find it."""
    made, inside, most = [], [], []
    begin = threading.Barrier(3)

    def run(name):
        cache = StageCache(tmp_path)
        begin.wait()
        with cache.exclusive("spatial", "k"):
            inside.append(name)
            most.append(len(inside))
            if not cache.has("spatial", "k"):
                made.append(name)
                with cache.writing("spatial", "k") as folder:
                    (folder / "lora").write_text(name)
            inside.remove(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(made) == 1 and most == [1, 1, 1]
    assert (tmp_path / "spatial-k" / "lora").read_text() == made[0]
    assert not list((tmp_path / "work").iterdir())  # nothing is left of the locks


def test_other_entries_do_not_wait(tmp_path):
    cache = StageCache(tmp_path)
    with cache.exclusive("spatial", "a"), cache.exclusive("spatial", "b"):
        assert len(list((tmp_path / "work").iterdir())) == 2
