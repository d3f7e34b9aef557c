"""Archives: posteriors (Kaldi binary, text, compact), matrices of each kind, vectors, and the lines of scp files."""
from __future__ import annotations

import os
import struct
import zlib

import numpy as np

from essence_kd.distill.archives import read_dense_or_sparse
from essence_kd.io import compact, posterior
from essence_kd.io.errors import UserError
from essence_kd.io.kernels import kernels
from essence_kd.io.objects import StoredMatrix
from essence_kd.io.posterior import Posterior, PosteriorTable, PosteriorWriter, read_posteriors
from essence_kd.io.provenance import sidecar_path
from essence_kd.io.specifiers import parse_rspecifier, parse_span, parse_wspecifier, read_scp
from essence_kd.io.tables import (IntVectorWriter, MatrixPlaces, MatrixTable, MatrixWriter, VectorTable, VectorWriter,
                                  read_int_vectors, read_matrices, read_vectors)
from essence_kd.io.text import split
from fuzz.driver import file, folder, target


def bits(array: np.ndarray) -> bytes:
    """What two arrays have in common that are equal, NaN included."""
    return f"{array.dtype.str} {array.shape} ".encode() + array.tobytes()


def read_all(read, path: str) -> list:
    """Everything of an archive, read as a whole."""
    return list(read(f"ark:{path}"))


def copied(writer_of, wspecifier: str, read, values: list) -> list:
    """The same values, written and read again."""
    with writer_of(wspecifier + os.path.join(folder(), "copy")) as writer:
        for utt, value in values:
            writer.write(utt, value)
    return read_all(read, os.path.join(folder(), "copy"))


# ------------------------------------------------------------------------------------------------------- posteriors

def _same_posteriors(a: list, b: list) -> None:
    assert [utt for utt, _ in a] == [utt for utt, _ in b]
    for (utt, x), (_, y) in zip(a, b):
        assert np.array_equal(x.offsets, y.offsets) and np.array_equal(x.ids, y.ids) and \
            bits(x.probs + np.float32(0)) == bits(y.probs + np.float32(0)), utt


def _check_posterior(post: Posterior) -> None:
    offsets = post.offsets
    assert offsets.dtype == np.int64 and len(offsets) == post.num_frames + 1 and offsets[0] == 0
    assert (np.diff(offsets) >= 0).all() and offsets[-1] == len(post.ids) == len(post.probs)
    assert post.ids.dtype == np.int32 and post.probs.dtype == np.float32
    assert not len(post.ids) or 0 <= post.ids.min() <= post.ids.max() < 1 << 23
    assert np.isfinite(post.probs).all()


def _without_kernels(path: str, wanted: list) -> None:
    """NumPy alone reads the same."""
    library, posterior.kernels = posterior.kernels, lambda: None
    try:
        _same_posteriors(read_all(read_posteriors, path), wanted)
    finally:
        posterior.kernels = library


def _posteriors(path: str) -> None:
    try:
        read = read_all(read_posteriors, path)
    except UserError:
        library, posterior.kernels = posterior.kernels, lambda: None
        try:
            read_all(read_posteriors, path)
        except UserError:
            raise
        finally:
            posterior.kernels = library
        raise AssertionError("NumPy takes what the kernels refuse") from None
    for _, post in read:
        _check_posterior(post)
        post.mass(), post.padded(int(post.counts().max(initial=0)))
    if kernels() is not None:
        _without_kernels(path, read)
    _same_posteriors(copied(PosteriorWriter, "ark:", read_posteriors, read), read)
    _same_posteriors([(utt, value) for utt, value in read_dense_or_sparse(f"ark:{path}")], read)


@target
def posterior_binary(data: bytes) -> None:
    """An archive of Kaldi's binary Posterior."""
    _posteriors(file(data))


@target
def posterior_text(data: bytes) -> None:
    """An archive of Kaldi's text form of Posteriors; its writer gives seven digits."""
    path = file(data)
    read = read_all(read_posteriors, path)
    for _, post in read:
        _check_posterior(post)
    again = copied(PosteriorWriter, "ark,t:", read_posteriors, read)
    assert [utt for utt, _ in again] == [utt for utt, _ in read]
    for (_, x), (_, y) in zip(read, again):
        assert np.array_equal(x.offsets, y.offsets) and np.array_equal(x.ids, y.ids)
        assert np.allclose(x.probs, y.probs, rtol=1e-6, atol=1e-44) or np.abs(x.probs).max() > 3.4e38


def _with_checksum(data: bytes) -> bytes:
    """The same archive with the CRC of its first record put right."""
    at = data.find(compact.MAGIC)
    if at < 0 or len(data) < at + 30:
        return data
    body = data[at + 10:]
    layout, _, width, _, _, count, total = struct.unpack("<BBBBIIQ", body[:20])
    size = 20 + count * (layout + 2) + total * width
    return data[:at + 6] + struct.pack("<I", zlib.crc32(body[:size])) + body[:size] + body[size:]


@target
def posterior_compact(data: bytes) -> None:
    """A compact archive, whose checksum is right."""
    path = file(_with_checksum(data))
    _posteriors(path)
    read = read_all(read_posteriors, path)
    again = copied(PosteriorWriter, "compact:ark:", read_posteriors, read)
    for (_, x), (_, y) in zip(read, again):
        assert np.array_equal(x.offsets, y.offsets) and np.array_equal(x.ids, y.ids)
        mass = x.mass()
        assert (np.abs(mass - y.mass()) <= mass * 2e-3 + 1e-6).all()


@target
def posterior_places(data: bytes) -> None:
    """Frame ranges of Posteriors that an scp names, from the first two bytes on: the same as of the whole."""
    start, stop = (data[0] % 8, data[1] % 8) if len(data) > 1 else (0, 0)
    ark = file(_with_checksum(data[2:]), "archive")
    scp = file(f"utt {ark}:4\n".encode(), "scp")
    table = PosteriorTable(scp)
    try:
        whole = table["utt"]
    except UserError:
        whole = None
    part = table.frames("utt", start, stop)
    assert part.num_frames == stop - start
    if whole is not None:
        _check_posterior(whole)
        _same_posteriors([("utt", part)], [("utt", whole[start:stop])])


# --------------------------------------------------------------------------------------------- matrices and vectors

def _same_arrays(a: list, b: list) -> None:
    assert [(utt, bits(value)) for utt, value in a] == [(utt, bits(value)) for utt, value in b]


def _nearly(a: list, b: list) -> None:
    """As text has them: seven digits, float32."""
    assert [utt for utt, _ in a] == [utt for utt, _ in b]
    for (_, x), (_, y) in zip(a, b):
        assert x.shape == y.shape or not x.size and not y.size
        x = x.astype(np.float32)
        assert np.allclose(x, y, rtol=1e-6, atol=1e-44, equal_nan=True) or np.nanmax(np.abs(x)) > 3.4e38


@target
def matrix(data: bytes) -> None:
    """An archive of matrices: FM, DM, CM, CM2, CM3, text."""
    path = file(data)
    read = read_all(read_matrices, path)
    for _, value in read:
        assert value.ndim == 2 and value.dtype in (np.float32, np.float64) and value.flags.writeable
    # a matrix without elements has neither rows nor columns when it is written
    full = [(utt, value) for utt, value in read if value.size]
    _same_arrays(copied(MatrixWriter, "ark:", read_matrices, full), full)
    _nearly(full, copied(MatrixWriter, "ark,t:", read_matrices, full))
    copied(MatrixWriter, "ark:", read_matrices, read)


@target
def matrix_places(data: bytes) -> None:
    """A matrix that an scp names with an offset and a range, both from the input's first line."""
    line, _, rest = data.partition(b"\n")
    place = line.decode("latin-1").replace("|", "").replace("/", "").replace("\0", "")
    file(rest, "archive")
    place = f"{folder()}/archive{place}"
    if place.endswith(".gz"):
        return
    places = MatrixPlaces()
    found = places.read("utt", place)
    assert places.shape("utt", place) == found.shape and found.ndim == 2
    scp = file(f"utt {place}\n".encode("utf-8"), "scp")
    _same_arrays([("utt", MatrixTable(scp)["utt"])], [("utt", found)])
    _same_arrays(list(read_matrices(f"scp:{scp}")), [("utt", found)])


@target
def dense_or_sparse(data: bytes) -> None:
    """An archive of which the reader finds out what it holds."""
    for _, value in read_dense_or_sparse(f"ark:{file(data)}", stored=True):
        if isinstance(value, StoredMatrix):
            value[:]
        elif isinstance(value, Posterior):
            _check_posterior(value)
        else:
            assert value.ndim == 2


@target
def vector(data: bytes) -> None:
    """An archive of float vectors: FV, DV, text."""
    read = read_all(read_vectors, file(data))
    for _, value in read:
        assert value.ndim == 1 and value.dtype in (np.float32, np.float64)
    _same_arrays(copied(VectorWriter, "ark:", read_vectors, read), read)
    _nearly(read, copied(VectorWriter, "ark,t:", read_vectors, read))
    file(f"a {folder()}/input:2[0:1]\n".encode(), "scp")
    VectorTable(f"{folder()}/scp")["a"]


@target
def int_vector(data: bytes) -> None:
    """An archive of vectors of int32, binary or text."""
    read = read_all(read_int_vectors, file(data))
    for _, value in read:
        assert value.ndim == 1 and value.dtype == np.int32
    for form in ("ark:", "ark,t:"):
        _same_arrays(copied(IntVectorWriter, form, read_int_vectors, read), read)


@target
def gzip_archive(data: bytes) -> None:
    """A gzip file of matrices; what is not gzip is compressed first."""
    import gzip

    path = file(data if data[:2] == b"\x1f\x8b" else gzip.compress(data, 1, mtime=0), "input.gz")
    read_all(read_matrices, path)


# ------------------------------------------------------------------------------------------------ scp, specifiers

@target
def scp(data: bytes) -> None:
    """An scp file: its lines alone, nothing that they name is opened."""
    count = 0
    for number, utt, name, span in read_scp(file(data)):
        assert number > count and split(utt) == [utt] and name
        count = number
        for size in (0, 3, 100):
            try:
                part = parse_span(span or "", size, "rows")
            except ValueError:
                continue
            assert 0 <= part.start <= part.stop <= size


@target
def specifiers(data: bytes) -> None:
    """A line is an rspecifier, a wspecifier and a place beside which a sidecar lies."""
    for line in data.decode("utf-8", "replace").split("\n"):
        for parse in (parse_rspecifier, parse_wspecifier):
            try:
                found = parse(line)
            except UserError as error:
                assert str(error)
                continue
            assert found.ark is not None or found.scp is not None
        if "\0" not in line:
            sidecar_path(line)
