"""The audit: reads two models tensor by tensor, measures what one changed, writes the page, tables and JSON."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import polars as pl
import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankscope.analyse.matrices import Spectra, spectra
from rankscope.analyse.norms import NormCache
from rankscope.analyse.subspaces import Subspaces, subspaces
from rankscope.audit.against import compare
from rankscope.audit.configurations import configuration_notes
from rankscope.audit.estimate import decomposition_estimate
from rankscope.audit.figures import make_figures
from rankscope.audit.findings import findings
from rankscope.audit.page import render_page
from rankscope.audit.result import Audit, OnTexts, Truncation
from rankscope.audit.texts import Texts, as_texts, look_at_base, look_at_tuned
from rankscope.audit.truncation import Cut, cut_adapter
from rankscope.data.hub import fingerprint, hub_commit, model_folder, named_commit, split_revision, tuned_folder
from rankscope.data.sources import read_rows
from rankscope.data.tokens import Tokenizer
from rankscope.data.user_cache import user_cache
from rankscope.errors import UserError
from rankscope.models.decompositions import Decompositions
from rankscope.models.fused import Part, iter_parts
from rankscope.models.loading import load_model
from rankscope.models.lora_folder import read_lora_folder
from rankscope.models.opening import read_config
from rankscope.models.tuned_folder import load_tuned_folder
from rankscope.models.updates import Update
from rankscope.models.weights import Tuned, read_tuned
from rankscope.provenance import provenance
from rankscope.spec import Data
from rankscope.store import replacing, write_text

PAGE, DOCUMENT, TRUNCATED = "index.html", "audit.json", "truncated"
_SETTINGS = (
    "r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "target_parameters", "modules_to_save",
    "rank_pattern", "alpha_pattern", "bias", "lora_bias", "base_model_name_or_path", "revision", "peft_version",
)  # fmt: skip


class Watcher(Protocol):
    """Who is told how far the audit is."""

    def message(self, text: str) -> None:
        """One line."""

    def progress(self, what: str, done: int, total: int) -> None:
        """So many of so many tensors or texts are done."""


class Silent(Watcher):
    """A watcher that tells nobody."""


@dataclass(frozen=True)
class Request:
    """What is to be audited.

    Attributes:
        base: A folder or hub id, with `@revision` where wanted.
        tuned: Likewise, an adapter or a whole model.
        out: The folder that is written to.
        layers: The layers that are looked at; None: all, and what lies outside them.
        texts: A file of texts on which both models are run.
        intruders: Whether the base's matrices are decomposed, and the update is set against their directions.
        against: Another tuned model of the same base.
        truncate: A share of the energy (a float), or a rank (an int), to which a copy of the adapter is cut.
    """

    base: str
    tuned: str
    out: Path
    layers: frozenset[int] | None = None
    texts: Path | None = None
    intruders: bool = False
    against: str | None = None
    truncate: float | int | None = None


@dataclass(frozen=True)
class Outcome:
    """What an audit wrote, and its words.

    Attributes:
        page: The HTML page.
        document: The JSON document as text.
        findings: What stands out.
        audit: All numbers.
    """

    page: Path
    document: str
    findings: list[str]
    audit: Audit


def run(request: Request, watcher: Watcher | None = None) -> Outcome:
    """Audit one tuned model, and write the page, the tables and the JSON document.

    Args:
        request: What, against what, and where to.
        watcher: Who is told how far it is; nobody where none is given.

    Raises:
        UserError: A folder is not what it should be, or the tuned model does not belong to the base.
    """
    watcher = watcher or Silent()
    _check_out(request)
    base, tuned, notes = _open(request)
    updates = _chosen(tuned, request.layers)
    other = None if request.against is None else read_tuned(base, _tuned_folder(request.against))
    cut = None if request.truncate is None else cut_adapter(tuned, request.truncate)
    texts = None if request.texts is None else _texts(request.texts, base)
    parts_of = _taken_apart(base)
    found, subspace, ranks = _measured(updates, base, parts_of, request, watcher)
    against = None
    if other is not None:
        pairs = _watched(updates, watcher, "compared")
        against = compare(request.against, pairs, _chosen(other, request.layers), parts_of)
    on_texts = None if texts is None else _on_texts(texts, base, tuned.folder, watcher)
    audit = Audit(
        base=request.base,
        tuned=request.tuned,
        method="full" if tuned.lora is None else "dora" if tuned.lora.config.use_dora else "lora",
        settings={} if tuned.lora is None else {key: tuned.lora.stored.get(key) for key in _SETTINGS},
        matrices=_joined(found.matrices, ranks, subspace),
        others=found.others,
        singular_values={name: S.tolist() for name, S in found.singular_values.items()},
        summary={
            "num_matrices": found.matrices.height,
            **found.summary(),
            **({} if subspace is None else subspace.summary()),
        },
        notes=(*notes, *tuned.notes, *found.notes()),
        exactness=() if subspace is None else subspace.notes(),
        against=against,
        truncation=None if cut is None else _write_adapter(cut, request.out / TRUNCATED),
        on_texts=on_texts,
        provenance=provenance(),
    )
    return _write(audit, request.out)


def _check_out(request: Request) -> None:
    out = request.out
    for name, kind in (("study.yaml", "a study"), ("config.json", "a model"), (CONFIG_NAME, "an adapter")):
        if (out / name).exists():
            raise UserError(f"holds {kind}, and an audit would write into it", where=out, mend="choose another --out")
    # What an interrupted audit leaves is the cut adapter, if anything.
    if not out.is_dir() or {path.name for path in out.iterdir()} <= {TRUNCATED}:
        return
    audited = _audited(out)
    if audited is None:
        what = f"holds files that are no audit's, and {PAGE} and tables/ would be written beside or over them"
        raise UserError(what, where=out, mend="choose another --out")
    if not all(map(_is_same, audited, (request.base, request.tuned))):
        what = f"holds the audit of {audited[1]} against {audited[0]}"
        raise UserError(what, where=out, mend="choose another --out, or remove it")


def _audited(out: Path) -> tuple[str, str] | None:
    """The base and the tuned model of which a folder holds the audit; None where it holds none."""
    try:
        document = json.loads((out / DOCUMENT).read_text(encoding="utf-8"))
        return str(document["base"]), str(document["tuned"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _is_same(one: str, other: str) -> bool:
    return one == other or Path(one).resolve() == Path(other).resolve()


def _open(request: Request) -> tuple[Path, Tuned, list[str]]:
    """The base's folder, the tuned model, and remarks; whatever can be found wrong without reading numbers is."""
    source, revision = split_revision(request.base)
    if (Path(source) / CONFIG_NAME).is_file():
        raise UserError("is an adapter, and the base comes first", where=source, mend="rankscope audit BASE TUNED")
    folder = _tuned_folder(request.tuned)
    stored = read_lora_folder(folder).stored if (folder / CONFIG_NAME).is_file() else {}
    named, wanted = stored.get("base_model_name_or_path"), stored.get("revision")
    is_same = named == source
    base = model_folder(source, revision or (wanted if is_same else None), needs_tokenizer=False)
    notes = []
    if wanted:
        commit, expected = hub_commit(base), named_commit(base, wanted)
        if commit and expected and commit != expected:
            text = f"it was tuned from revision {wanted} of {named}, and {base} holds commit {commit}"
            raise UserError(text, where=folder / CONFIG_NAME, mend=f"audit it against {source}@{wanted}")
        if not (commit and expected):
            notes.append(f"the adapter names revision {wanted} of its base; a folder's revision cannot be checked")
    if named and not is_same and "/" in source and not Path(source).expanduser().exists():
        notes.append(f"the adapter names {named} as its base; it was compared with {source}")
    tuned = read_tuned(base, folder)
    return base, tuned, [*notes, *(configuration_notes(base, folder) if tuned.lora is None else ())]


def _tuned_folder(source: str) -> Path:
    return tuned_folder(*split_revision(source))


def _chosen(tuned: Tuned, layers: frozenset[int] | None) -> list[Update]:
    """The updates of the layers asked for.

    Raises:
        UserError: One of them does not exist.
    """
    if layers is None:
        return list(tuned.updates)
    there = {update.layer for update in tuned.updates if update.layer is not None}
    if missing := sorted(layers - there):
        text = f"layer {missing[0]} was not tuned; tuned are {min(there)} to {max(there)}" if there else "has no layers"
        raise UserError(text, where=tuned.folder, mend="choose other --layers")
    return [update for update in tuned.updates if update.layer in layers]


def _taken_apart(base: Path) -> Callable[[Update], Iterator[Part | Update]]:
    """Takes fused matrices of this base apart."""
    config = read_config(base)
    return lambda update: iter_parts([update], config)


def _measured(
    updates: list[Update], base: Path, parts_of: Callable[[Update], Iterator[Part | Update]], request: Request,
    watcher: Watcher,
) -> tuple[Spectra, Subspaces | None, dict[str, int | None]]:  # fmt: skip
    """The spectra of all updates, their place among the base's own directions where asked for, and granted ranks."""
    ranks: dict[str, int | None] = {}

    def parts(what: str) -> Iterator[Part | Update]:
        for update in _watched(updates, watcher, what):
            for part in parts_of(update):
                ranks[part.name] = part.rank
                yield part

    norms = NormCache(user_cache() / "norms" / f"{fingerprint(base)[:32]}.json")
    try:
        found = spectra(parts("measured"), norms.of)
    finally:
        norms.write()
    if not request.intruders:
        return found, None, ranks
    shapes = [update.shape for update in updates if update.kind == "matrix"]
    watcher.message(decomposition_estimate(shapes))
    return found, subspaces(parts("decomposed"), Decompositions(user_cache()).of), ranks


def _joined(matrices: pl.DataFrame, ranks: dict[str, int | None], found: Subspaces | None) -> pl.DataFrame:
    """The matrices' table with the rank granted, and with what was found of their singular vectors."""
    rank = pl.col("name").replace_strict(list(ranks), list(ranks.values()), default=None, return_dtype=pl.Int32)
    table = matrices.with_columns(rank.alias("rank"))
    if found is None:
        return table
    measures = found.matrices.drop("layer", "module", "d_out", "d_in")
    return table.join(measures, on="name", how="left", maintain_order="left")


def _texts(path: Path, base: Path) -> Texts:
    if not path.is_file():
        raise UserError("there is no such file", where=path, mend="name a file of texts")
    return as_texts(read_rows(Data(source=str(path)), "test"), Tokenizer.from_folder(base))


def _on_texts(texts: Texts, base: Path, tuned: Path, watcher: Watcher) -> OnTexts:
    """Both models on the texts, one after the other in memory; what the base showed waits on disk."""
    with tempfile.TemporaryDirectory(prefix="rankscope-") as scratch:
        waiting = _Scratch(Path(scratch))
        number = f"{len(texts.pairs)} text{'' if len(texts.pairs) == 1 else 's'}"
        watcher.message(f"running the base on {number}")
        model = load_model(base, torch.float32, "cpu")
        before = look_at_base(model, texts, waiting, partial(watcher.progress, "losses of the base: text"))
        watcher.message(f"running the tuned model on {number}")
        watch = partial(watcher.progress, "losses of the tuned model: text")
        return look_at_tuned(load_tuned_folder(model, tuned), texts, before, waiting, watch)


@dataclass(frozen=True)
class _Scratch:
    """Tensors in a folder that goes when the audit is done."""

    folder: Path

    def keep(self, kind: str, batch: int, layer: int, tensor: Tensor) -> None:
        save_file({"tensor": tensor.cpu().contiguous()}, self._file(kind, batch, layer))

    def kept(self, kind: str, batch: int, layer: int) -> Tensor:
        return load_file(self._file(kind, batch, layer))["tensor"]

    def _file(self, kind: str, batch: int, layer: int) -> Path:
        return self.folder / f"{kind}-{batch}-{layer}.safetensors"


def _watched(updates: list[Update], watcher: Watcher, what: str) -> Iterator[Update]:
    for index, update in enumerate(updates):
        watcher.progress(what, index, len(updates))
        yield update
    watcher.progress(what, len(updates), len(updates))


def _write_adapter(cut: Cut, folder: Path) -> Truncation:
    with replacing(folder / SAFETENSORS_WEIGHTS_NAME) as temporary:
        save_file(cut.tensors, temporary, metadata={"format": "pt"})
    write_text(folder / CONFIG_NAME, json.dumps(cut.settings(), indent=2, sort_keys=True) + "\n")
    return cut.result(str(folder))


def _write(audit: Audit, out: Path) -> Outcome:
    said = findings(audit)
    figures = make_figures(audit)
    document = audit.as_json(said) + "\n"
    write_text(out / DOCUMENT, document)
    shutil.rmtree(out / "tables", ignore_errors=True)  # an earlier audit may have had more of them
    for name, table in audit.tables().items():
        write_text(out / "tables" / f"{name}.csv", table.write_csv())
    write_text(out / PAGE, render_page(audit, said, figures))
    return Outcome(out / PAGE, document, said, audit)
