import functools
import gzip
import hashlib
import http.server
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from gnomon.core.errors import InvalidInput
from gnomon.data import idx, images
from gnomon.data.load import load, npz, split


def packed(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A data set of four small IDX files with right checksums, served over HTTP; nothing is on this machine yet."""
    rng = np.random.default_rng(0)
    served = tmp_path / "mirror"
    served.mkdir()
    checksums, arrays = {}, {}
    for name, n in (("train", 6), ("t10k", 3)):
        for part, shape in (("images-idx3-ubyte", (n, 4, 4)), ("labels-idx1-ubyte", (n,))):
            file, array = f"{name}-{part}", rng.integers(0, 10, shape, dtype=np.uint8)
            raw = packed(array)
            zipped = gzip.compress(raw)
            (served / f"{file}.gz").write_bytes(zipped)
            arrays[file] = array
            checksums[file] = idx.Checksums(*(hashlib.md5(content).hexdigest() for content in (zipped, raw)))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GNOMON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GNOMON_DATA", raising=False)
    yield idx.Archive("mnist", "MNIST", f"http://127.0.0.1:{server.server_port}/", checksums), arrays, served
    server.shutdown()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_idx_files_are_downloaded_once_and_kept(small, tmp_path):
    archive, arrays, served = small
    found = idx.arrays(archive)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    for file in served.iterdir():
        file.unlink()
    again = idx.arrays(archive)
    assert all(np.array_equal(again[name], array) for name, array in arrays.items())
    assert sorted(path.name for path in (tmp_path / "cache" / "data" / "mnist").iterdir()) == sorted(f"{name}.gz" for name in arrays)


def test_the_folder_of_gnomon_data_comes_first(small, tmp_path, monkeypatch):
    archive, arrays, served = small
    folder = tmp_path / "own" / "mnist"
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        (folder / name).write_bytes(packed(array))
    monkeypatch.setenv("GNOMON_DATA", str(folder.parent))
    for file in served.iterdir():
        file.unlink()
    assert np.array_equal(idx.arrays(archive)["t10k-labels-idx1-ubyte"], arrays["t10k-labels-idx1-ubyte"])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda zipped: zipped[: len(zipped) // 2], "not a whole gzip file"),
        (lambda zipped: b"hello", "not a whole gzip file"),
        (lambda zipped: gzip.compress(gzip.decompress(zipped)[:-3]), "cut short"),
        (lambda zipped: gzip.compress(gzip.decompress(zipped)[:5]), "cut short"),
        (lambda zipped: gzip.compress(b"\1" + gzip.decompress(zipped)[1:]), "not an IDX file"),
        (lambda zipped: gzip.compress(gzip.decompress(zipped)[:-1] + b"\xff"), "another checksum"),
    ],
)
def test_a_spoilt_file_is_refused_by_name(small, tmp_path, spoil, says):
    archive, _, _ = small
    idx.arrays(archive)
    path = tmp_path / "cache" / "data" / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InvalidInput, match=says) as refused:
        idx.arrays(archive)
    assert "train-images-idx3-ubyte" in str(refused.value)


def test_a_spoilt_download_is_not_kept(small, tmp_path):
    archive, _, served = small
    (served / "train-images-idx3-ubyte.gz").write_bytes(b"a page that says: please log in")
    with pytest.raises(InvalidInput, match="another checksum"):
        idx.arrays(archive)
    assert not list((tmp_path / "cache").rglob("*.gz"))


def test_no_network_says_what_to_do(small):
    archive, _, served = small
    for file in served.iterdir():
        file.unlink()
    with pytest.raises(InvalidInput, match="cannot be fetched.*GNOMON_DATA"):
        idx.arrays(archive)


@pytest.mark.parametrize(
    ("name", "folder", "mean", "deviation"),
    [
        ("mnist", Path(os.environ.get("GNOMON_DATA", "/nowhere")) / "mnist", 0.1307, 0.3081),
        ("fashion-mnist", Path("/usr/share/datasets/fashion-mnist"), 0.2860, 0.3530),
    ],
)
def test_the_published_images_have_their_published_moments(name, folder, mean, deviation):
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    (x, y), (x_test, y_test), title = load(name)
    assert title.lower() == name
    assert x.shape == (60_000, 1, 28, 28)
    assert x_test.shape == (10_000, 1, 28, 28)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert sorted(set(y.tolist())) == list(range(10))
    assert torch.bincount(y_test).sum() == 10_000
    assert abs(float(x.double().mean())) < 1e-4
    assert float(x.double().std()) == pytest.approx(1, abs=1e-4)
    assert -float(x.min()) == pytest.approx(mean / deviation, abs=2e-3)
    assert float(x.max()) == pytest.approx((1 - mean) / deviation, abs=3e-3)


def test_digits_are_split_the_same_way_always():
    (x, y), (x_test, y_test) = images.digits()
    assert x.shape == (1437, 1, 8, 8)
    assert x_test.shape == (360, 1, 8, 8)
    assert len(y) == 1437
    torch.manual_seed(5)
    assert torch.equal(images.digits()[0][0], x)
    raw, raw_test = images.digits(standardise=False)
    assert float(raw[0].min()) == 0
    assert float(raw[0].max()) == 1
    everything = torch.cat([raw[0], raw_test[0]]).reshape(1797, -1)
    assert len(torch.unique(everything, dim=0)) == 1797, "an image is on both sides"
    assert torch.bincount(torch.cat([y, y_test])).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_names_take_literal_arguments():
    raw, _, title = load("digits(standardise=False)")
    assert title == "digits"
    assert float(raw[0].min()) == 0
    with pytest.raises(InvalidInput, match="do not take these arguments"):
        load("digits(size=3)")
    with pytest.raises(InvalidInput, match="only literals"):
        load("digits(standardise=open('x'))")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InvalidInput, match="Did you mean 'fashion-mnist'"):
        load("fashon-mnist")


def test_npz_files(tmp_path):
    x, y = np.ones((5, 3)), np.arange(5, dtype=np.uint8)
    np.savez(tmp_path / "both.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    train, test, name = load(str(tmp_path / "both.npz"))
    assert name == "both.npz"
    assert train[0].shape == (5, 3)
    assert train[1].dtype == torch.int64
    assert test[1].tolist() == [0, 1]
    np.savez(tmp_path / "one.npz", x=x, y=y)
    assert npz(tmp_path / "one.npz")[1] is None
    np.savez(tmp_path / "other.npz", images=x, labels=y)
    with pytest.raises(InvalidInput, match="it holds images, labels"):
        npz(tmp_path / "other.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object), y=y)
    with pytest.raises(InvalidInput, match="something else than arrays"):
        npz(tmp_path / "objects.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "both.npz").read_bytes()[:200])
    with pytest.raises(InvalidInput, match="not a whole .npz"):
        npz(tmp_path / "cut.npz")
    with pytest.raises(InvalidInput, match="Did you mean 'both.npz'"):
        npz(tmp_path / "boht.npz")


def test_a_factory_returns_train_or_both():
    x, y = torch.ones(4, 2), torch.zeros(4)
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    assert split((x, y)) == ((x, y), None)
    assert split(loader) == (loader, None)
    assert split((loader, loader)) == (loader, loader)
    assert split(((x, y), (x, y)))[1][0] is x
    assert split((({"a": x}), y))[1] is None
    with pytest.raises(InvalidInput, match="a tuple of 3 came"):
        split((x, y, x))


def test_a_factory_file_is_called_with_a_seeded_state(tmp_path):
    (tmp_path / "mydata.py").write_text("import torch\ndef make(n=3):\n    return torch.randn(n, 2), torch.arange(n)\ndef bad():\n    raise RuntimeError('disk on fire')\n")
    before = torch.random.get_rng_state()
    (x, _), test, name = load(f"{tmp_path}/mydata.py:make(n=4)", seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(x, load(f"{tmp_path}/mydata.py:make(n=4)", seed=1)[0][0])
    assert not torch.equal(x, load(f"{tmp_path}/mydata.py:make(n=4)", seed=2)[0][0])
    assert test is None
    assert name.endswith("mydata.py:make(n=4)")
    with pytest.raises(InvalidInput, match=r"RuntimeError: disk on fire \(mydata.py, line 5\)"):
        load(f"{tmp_path}/mydata.py:bad")
    with pytest.raises(InvalidInput, match="defines: make, bad"):
        load(f"{tmp_path}/mydata.py")


def test_a_list_of_two_batches_is_no_pair_of_inputs_and_targets():
    from gnomon.core import dataset, rng

    batches = [(torch.zeros(3, 2), torch.zeros(3)), (torch.ones(2, 2), torch.ones(2))]
    assert len(dataset.read(batches, rng=rng.generator(0))) == 5
    assert len(dataset.read([torch.zeros(3, 2), torch.zeros(3)], rng=rng.generator(0))) == 3
    assert len(dataset.read(((torch.zeros(3, 2), torch.zeros(3)), torch.zeros(3)), rng=rng.generator(0))) == 3
