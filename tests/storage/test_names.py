"""File names: the same for the same text, distinct for distinct texts, within what file systems take."""

import os
import subprocess
import sys

import numpy as np
import pytest

from mmdit.storage.names import MAX_BYTES, nested_name, number_repeats, path_of, safe_name, text_of


def test_safe_name():
    assert safe_name("tench, Tinca tinca") == "tench_Tinca_tinca"
    assert safe_name("../../etc/passwd") == "etc_passwd"
    assert safe_name("Bär.1") == "Bär.1"
    assert safe_name("...") == safe_name("") == "sample"


def test_vowel_signs_are_kept_and_accents_composed():
    assert safe_name("हिन्दी") == "हिन्दी"
    assert safe_name("हिन्दू") != safe_name("हिन्दी")
    assert safe_name("cafe\u0301") == safe_name("caf\u00e9") == "caf\u00e9"


def test_long_names_are_cut_and_stay_apart():
    names = [safe_name("名" * 100 + end) for end in ("a", "b")]
    assert names[0] != names[1]
    assert all(len(name.encode()) <= MAX_BYTES for name in names)
    assert names[0].startswith("名名名")


def distinct_names(texts):
    return number_repeats([safe_name(text) for text in texts])


def test_names_that_become_one_are_told_apart():
    assert distinct_names(["a/b", "a b", "A b", "C", "C#", "..", ""]) == [
        *("a_b", "a_b_2", "A_b_3", "C", "C_2", "sample", "sample_2")
    ]
    assert distinct_names(["a b", "a/b", "a_b_2"]) == ["a_b", "a_b_3", "a_b_2"]


def test_any_texts_get_distinct_names_that_a_disk_takes(tmp_path):
    rng = np.random.default_rng(0)
    alphabet = [*"aA_.-/ #\u0301é\u0915\u093f名", "\0", "\n", "..", "\udce9"]
    texts = ["".join(rng.choice(alphabet, size=rng.integers(0, 60))) for _ in range(500)]
    names = distinct_names(texts)
    for name in names:
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.iterdir())) == len(texts)
    assert len({name.casefold() for name in names}) == len(texts)


def test_bytes_that_are_no_utf8_become_text_and_paths_are_bytes():
    assert text_of(b"caf\xe9.png") == "caf%E9.png"
    assert text_of("caf\udce9.png") == "caf%E9.png"
    assert os.fsencode(path_of("né/caf\udce9")) == "né/caf".encode() + b"\xe9"
    with pytest.raises(UnicodeEncodeError):
        path_of("\ud800")


def test_names_do_not_depend_on_the_locale(tmp_path):
    code = (
        "import os, sys; from mmdit.storage.names import path_of, text_of; "
        "name = path_of('n\\u00e9'); open(name, 'w').close(); "
        "assert sys.getfilesystemencoding() == 'ascii'; print(ascii(text_of(os.listdir('.')[0])))"
    )
    environment = os.environ | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ascii("né")
    assert os.listdir(os.fsencode(tmp_path)) == ["né".encode()]


def test_ids_as_paths_below_a_folder():
    suffixes = (".json", ".png")
    for plain in ("000001", "n01/a", "é/ü 1", "a.png", "a.b/c"):
        assert nested_name(plain, suffixes) == plain
    others = [
        "..",
        "../a",
        "/a",
        "a//b",
        "a/",
        "",
        ".a",
        "a/.b",
        "a.png/b",
        "a\nb",
        "a\0",
        "x" * 201,
        "ü" * 101,
        "a/../b",
    ]
    made = [nested_name(text, suffixes) for text in others]
    assert len({*made, *others}) == 2 * len(others)
    for name in made:
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name.encode()) <= MAX_BYTES
