"""Watching leaves a training bit for bit as it is, whatever goes wrong, in a bare loop, in Lightning and in the Hugging Face Trainer."""

import json
import logging
import random
from importlib import resources

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset

from gnomon.core import rng as chance
from gnomon.core.errors import CannotWrite, InvalidInput
from gnomon.core.registry import get_instrument
from gnomon.core.subject import Subject
from gnomon.hooks import Watch
from gnomon.hooks.data import hold
from gnomon.hooks.watch import choose
from gnomon.instruments.dynamics import exact_noise_scale
from gnomon.numerics import dense
from gnomon.numerics.lanczos import Basis
from gnomon.numerics.operators import loss_value
from gnomon.run import history as histories
from gnomon.run.history import History

CHECK = jsonschema.Draft202012Validator(json.loads(resources.files("gnomon.run").joinpath("schema/history.json").read_text(encoding="utf-8")))
EVERYTHING = ("training_loss", "sharpness", "gradient_noise_scale", "spectral_norms", "margin_normalized")


class Net(nn.Module):
    """Dropout and batch norm: what draws at random, and what depends on the mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


def pair(n=96, seed=0):
    rng = chance.generator(seed, "hooks")
    return chance.normal(n, 6, rng=rng).float(), chance.integers(3, n, rng=rng)


class Augmented(Dataset):
    """Examples with noise from three global generators, as augmentations draw it."""

    def __init__(self):
        self.x, self.y, self.asked = *pair(), []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.asked.append(i)
        return self.x[i] + 0.1 * torch.randn(6) + 0.01 * random.random() + 0.01 * float(np.random.rand()), self.y[i]  # noqa: NPY002


def bare(watched, path=None, *, steps=18, every=5, start=0, **options):
    """A plain loop with a shuffling loader; returns the model and the Watch."""
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(Augmented(), batch_size=16, shuffle=True)
    watch = Watch(model, "cross_entropy", loader, pair(40, 1), every=every, out=path, optimizer=optimizer, **options) if watched else None
    step = start
    while step < steps:
        for x, y in loader:
            if watch is not None:
                watch.step(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            step += 1
    return model, watch


def same_bits(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_bare_loop_ends_in_the_same_bits(tmp_path):
    plain, _ = bare(False)
    random_state = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[2]  # noqa: NPY002
    watched, watch = bare(True, tmp_path / "h.json", readings=EVERYTHING)
    assert same_bits(plain, watched)
    assert torch.equal(random_state[0], torch.random.get_rng_state())
    assert (random_state[1], random_state[2]) == (random.getstate(), np.random.get_state()[2])  # noqa: NPY002
    assert watched.training
    assert [record["step"] for record in watch.history["records"]] == [0, 5, 10, 15]
    assert all(set(record["readings"]) == set(EVERYTHING) for record in watch.history["records"])


def test_the_file_is_the_history_and_fits_its_schema(tmp_path):
    _, watch = bare(True, tmp_path / "h.json", readings=EVERYTHING)
    document = json.loads((tmp_path / "h.json").read_text())
    assert document == json.loads(json.dumps(watch.history))
    assert [error.message for error in CHECK.iter_errors(document)] == []
    document["records"][1]["readings"]["sharpness"]["value"] = "large"
    assert not CHECK.is_valid(document)
    bare(True, tmp_path / "g.json", readings=EVERYTHING)
    assert (tmp_path / "g.json").read_bytes() == (tmp_path / "h.json").read_bytes()


def test_readings_are_those_of_the_weights_at_their_step(tmp_path):
    """Against the definitions, on the subject as a person would freeze it there."""
    torch.manual_seed(0)
    model, data = Net(), pair(64)
    watch = Watch(model, "cross_entropy", data, every=2, out=tmp_path / "h.json", readings=("training_loss", "gradient_noise_scale"), examples=64)
    optimizer, losses, noise = torch.optim.SGD(model.parameters(), lr=0.3), [], []
    for step in range(5):
        watch.step(step)
        if step % 2 == 0:
            subject = Subject.freeze(model, "cross_entropy", data)
            losses.append(loss_value(subject))
            noise.append(exact_noise_scale(subject))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    np.testing.assert_allclose(watch["training_loss"].value, losses, rtol=1e-6)
    low, high = watch["gradient_noise_scale"].interval
    assert ((low <= noise) & (noise <= high)).all()
    assert watch["training_loss"].axes[0].values == (0.0, 2.0, 4.0)


def test_a_loader_is_read_without_a_trace_and_only_where_examples_are_drawn():
    data = Augmented()
    loader = DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(5))
    before = loader.generator.get_state()
    held = hold(loader, examples=10, rng=chance.generator(0))
    assert len(held) == 10
    assert held.population == 96
    assert len(data.asked) == 10
    assert torch.equal(loader.generator.get_state(), before)
    split = DataLoader(TensorDataset(*pair()), batch_size=8, sampler=SubsetRandomSampler(range(12)))
    held = hold(split, examples=50, rng=chance.generator(0))
    assert torch.equal(held.blocks[0].inputs, pair()[0][:12])
    assert hold(Subset(data, range(20)), examples=5, rng=chance.generator(0)).population == 20
    with pytest.raises(InvalidInput, match="iterator"):
        hold(iter(loader), examples=5, rng=chance.generator(0))


def test_a_training_that_starts_again_goes_on_in_the_file(tmp_path):
    path = tmp_path / "h.json"
    bare(True, path, readings=("training_loss",))
    whole = json.loads(path.read_text())["records"]
    _, watch = bare(True, path, readings=("training_loss",), start=8, steps=14)
    steps = [record["step"] for record in watch.history["records"]]
    assert steps == [0, 5, 10]
    assert watch.history["records"][:2] == whole[:2]
    assert watch.history["records"][2]["readings"] != whole[2]["readings"]
    watch.step(3)
    assert [record["step"] for record in watch.history["records"]] == [0]
    with pytest.raises(InvalidInput, match="another network"):
        Watch(nn.Linear(6, 3), "cross_entropy", pair(), out=path)


def test_a_killed_training_loses_nothing(tmp_path):
    """The file is whole after each record: nothing is kept back until the end."""
    model, path = Net(), tmp_path / "h.json"
    watch = Watch(model, "cross_entropy", pair(), every=1, out=path, readings=("training_loss",))
    for step in range(3):
        watch.step(step)
        assert History.read(path).steps == list(range(step + 1))


def test_a_full_disk_does_not_stop_the_training(tmp_path, monkeypatch, caplog):
    full = True

    def write(path, content, *, durable):
        if full:
            raise CannotWrite("No space left on device")
        path.write_text(content)

    monkeypatch.setattr(histories, "write_atomic", write)
    watch = Watch(Net(), "cross_entropy", pair(), every=1, out=tmp_path / "h.json", readings=("training_loss",))
    with caplog.at_level(logging.WARNING):
        watch.step(0), watch.step(1)
    assert len(caplog.records) == 1
    assert "training goes on" in caplog.text
    full = False
    watch.step(2)
    assert History.read(tmp_path / "h.json").steps == [0, 1, 2]


def test_what_cannot_be_read_is_skipped_with_its_reason(tmp_path, monkeypatch):
    model = Net()
    watch = Watch(model, "cross_entropy", pair(), every=1, out=tmp_path / "h.json", readings=("training_loss", "spectral_norms"))
    watch.step(0)
    with torch.no_grad():
        model.layers[0].weight[0, 0] = float("nan")
    watch.step(1)
    with torch.no_grad():
        model.layers[0].weight.fill_(1.0)
        model.layers[4].weight.fill_(3e38)
    watch.step(2)
    first, second, third = watch.history["records"]
    assert not first["skipped"]
    assert not second["readings"]
    assert "NaN" in second["skipped"]["training_loss"]
    assert "not finite" in third["skipped"]["training_loss"]
    assert CHECK.is_valid(json.loads((tmp_path / "h.json").read_text()))
    monkeypatch.setattr("gnomon.run.history.Recorder.record", lambda *args, **kwargs: 1 / 0)
    watch.step(3)


def test_bad_wishes_are_refused_at_once(tmp_path):
    model, data = Net(), pair()

    def made(**options):
        return Watch(model, "cross_entropy", data, out=tmp_path / "h.json", **options)

    for options, message in [
        ({"readings": ("sharpnes",)}, "sharpness"), ({"readings": ("test_error",)}, "no test data"), ({"readings": ("distance_from_initialization",)}, "initialisation"),
        ({"readings": {"sharpness": {"probes": 3}}}, "products"), ({"readings": {"sharpness": {"products": 0}}}, "at least 1"), ({"readings": ()}, "empty"),
        ({"every": 0}, "every"), ({"share": 0.0}, "share"), ({"readings": ("preconditioned_sharpness",), "optimizer": "sgd", "lr": 0.1}, "optimizer in use"),
    ]:  # fmt: skip
        with pytest.raises(InvalidInput, match=message):
            made(**options)
    with pytest.raises(InvalidInput, match="folder"):
        Watch(model, "cross_entropy", data, out=tmp_path)


def test_sharpness_is_followed_from_the_last_eigenvector(tmp_path):
    """Against the dense Hessian at every record; each but the first takes fewer products than a search of its own."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)), pair(64)
    watch = Watch(model, "cross_entropy", data, every=1, out=tmp_path / "h.json", readings=("sharpness",), examples=64)
    optimizer, exact, counted = torch.optim.SGD(model.parameters(), lr=0.5), [], [0]
    for step in range(12):
        subject = Subject.freeze(model, "cross_entropy", data)
        exact.append(float(torch.linalg.eigvalsh(dense.hessian(subject))[-1]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gnomon.numerics.lanczos.Basis.step", counting(counted, Basis.step))
            watch.step(step)
            counted.append(0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    low, high = watch["sharpness"].interval
    assert ((low <= exact) & (exact <= high)).all()
    np.testing.assert_allclose(watch["sharpness"].value, exact, rtol=1e-4)
    assert max(counted[1:-1]) < counted[0]
    assert watch["sharpness"].plot().get_xlabel() == "step"


def counting(counted, step):
    """Lanczos's step, counted in the last entry of a list."""

    def stepped(basis):
        counted[-1] += 1
        step(basis)

    return stepped


def test_a_direction_that_has_overtaken_is_found(tmp_path):
    """What was kept is, exactly, an eigenvector that is no longer the leading one."""
    subject = Subject.freeze(nn.Linear(6, 1), "mse", (pair(64)[0], pair(64)[0][:, :1]))
    values, vectors = torch.linalg.eigh(dense.hessian(subject))
    for index in range(3):
        subject._shared["kept"] = {"hessian/followed": vectors[:, index].float()}
        found = get_instrument("sharpness")(subject, rng=chance.generator(index))
        assert abs(float(found) - float(values[-1])) <= float(found.error)


def test_what_is_followed_on_a_half_covers_the_whole():
    """80 halves of the examples, each followed from the eigenvector of the last: their intervals hold the whole's value at least nine times in ten."""
    torch.manual_seed(1)
    model, data = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double(), (pair(64)[0].double(), pair(64)[1])
    whole, instrument, hits = Subject.freeze(model, "cross_entropy", data), get_instrument("sharpness"), 0
    exact, vector = float(torch.linalg.eigvalsh(dense.hessian(whole))[-1]), None
    for draw in range(80):
        half = whole.sample(32, rng=chance.generator(draw, "half"))
        half._shared["kept"] = {} if vector is None else {"hessian/followed": vector}
        low, high = instrument(half, rng=chance.generator(draw)).ends()
        vector, hits = half.kept["hessian/followed"], hits + (low <= exact <= high)
    assert hits >= 72


def test_the_share_bounds_what_the_plan_costs():
    subject = Subject.freeze(Net(), "cross_entropy", pair(512), pair(64), batch_size=32, lr=0.1)
    for every in (10, 100, 1000, 100_000):
        chosen = choose(subject, None, every=every, share=0.05)
        steps = 100 * max(choice.every for choice in chosen)
        records = steps / min(choice.every for choice in chosen)
        assert sum(choice.cost * steps / choice.every for choice in chosen) + records <= 0.05 * steps
    assert all(choice.every == 10 for choice in choose(subject, {"sharpness": {}, "training_loss": {}}, every=10, share=None))
    assert all(choice.every == 100_000 for choice in choose(subject, None, every=100_000, share=0.05))


def test_a_long_history_stays_bounded_and_keeps_what_is_rare(monkeypatch):
    monkeypatch.setattr(histories, "MOST_BYTES", 4000)
    history = History({"schema": "gnomon/history/1"})
    for step in range(400):
        history.add({"step": step, "readings": {"a": 1.0, **({"b": 1.0} if step % 100 == 50 else {})}})
    assert len(history.text()) < 5000
    assert history.steps[0] == 0
    assert history.steps[-1] == 399
    assert sum('"b"' in line for line in history.lines) >= 1


def test_lightning_ends_in_the_same_bits(tmp_path):
    import lightning.pytorch as lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "step"}]

    def fit(watched):
        lightning.seed_everything(1, verbose=False)
        module, loader = Module(), DataLoader(Augmented(), batch_size=16, shuffle=True)
        watch = Watch(module, "cross_entropy", loader, every=2, out=tmp_path / "h.json", readings=("training_loss", "sharpness")) if watched else None
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=2,
            callbacks=[watch.lightning()] if watched else [], precision="bf16-mixed",
        )  # fmt: skip
        trainer.fit(module, loader)
        return module, watch

    (plain, _), (watched, watch) = fit(False), fit(True)
    assert same_bits(plain, watched)
    records = watch.history["records"]
    assert [record["step"] for record in records] == [0, 2, 4, 6]
    assert [record["training"]["lr"] for record in records] == pytest.approx([0.01, 0.0025, 0.000625, 0.00015625])
    assert records[0]["training"]["optimizer"] == "adamw"
    assert not any(record["skipped"] for record in records)


def test_the_hugging_face_trainer_ends_in_the_same_bits(tmp_path):
    import transformers

    config = transformers.BertConfig(vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, max_position_embeddings=8, num_labels=2)
    ids = chance.integers(12, 40, 6, rng=chance.generator(0))

    class Sentences(Dataset):
        def __len__(self):
            return len(ids)

        def __getitem__(self, i):
            return {"input_ids": ids[i], "attention_mask": torch.ones(6, dtype=torch.long), "labels": int(ids[i].sum()) % 2}

    def fit(watched):
        transformers.set_seed(2)
        model = transformers.BertForSequenceClassification(config)
        watch = Watch(model, "cross_entropy", Sentences(), every=3, out=tmp_path / "h.json", readings=("training_loss", "gradient_noise_scale", "sharpness")) if watched else None
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=7, per_device_train_batch_size=8, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, seed=2
        )
        transformers.Trainer(model, arguments, train_dataset=Sentences(), callbacks=[watch.trainer()] if watched else []).train()
        return model, watch

    (plain, _), (watched, watch) = fit(False), fit(True)
    assert same_bits(plain, watched)
    records = watch.history["records"]
    assert [record["step"] for record in records] == [0, 3, 6]
    assert all(set(record["readings"]) == {"training_loss", "gradient_noise_scale", "sharpness"} for record in records), records[0]["skipped"]
    assert records[1]["training"]["optimizer"] == "adamw"


def test_parameters_that_are_sharded_are_skipped(tmp_path):
    model = Net()
    watch = Watch(model, "cross_entropy", pair(), every=1, out=tmp_path / "h.json", readings=("training_loss",))
    model.layers[0].weight = nn.Parameter(torch.zeros(0))
    watch.step(0)
    assert "sharded" in watch.history["records"][0]["skipped"]["training_loss"]


def test_a_network_that_changes_its_dtype_is_followed(tmp_path):
    model = Net()
    watch = Watch(model, nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0])), pair(64), every=1, out=tmp_path / "h.json", readings=("training_loss", "sharpness"), examples=64)
    watch.step(0)
    model.double()
    watch.step(1)
    single, double = (record["readings"] for record in watch.history["records"])
    assert double["training_loss"]["value"] == pytest.approx(single["training_loss"]["value"], rel=1e-5)
    assert double["training_loss"]["error"] < 1e-6 * single["training_loss"]["error"]


def test_other_ranks_do_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    watch = Watch(Net(), "cross_entropy", pair(), every=1, out=tmp_path / "h.json", readings=("training_loss",))
    watch.step(0)
    assert not (tmp_path / "h.json").exists()
