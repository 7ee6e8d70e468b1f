import json

from mmdit.data.check import check_dataset
from mmdit.data.excerpt import write_excerpt
from mmdit.data.manifest import read_dataset_info, read_manifest


def test_an_excerpt_is_a_dataset_of_its_own(prompt_scenes, tmp_path):
    info = read_dataset_info(prompt_scenes)
    write_excerpt(info, "test", {"000009", "000003"}, tmp_path / "few")
    copied = read_dataset_info(tmp_path / "few")
    assert copied.categories == info.categories
    samples = {sample.id: sample for sample in read_manifest(copied, "train")}
    assert list(samples) == ["000003", "000009"]
    originals = {sample.id: sample for sample in read_manifest(info, "test")}
    for name, sample in samples.items():
        assert sample.category == originals[name].category
        assert sample.files.keys() == originals[name].files.keys()
        for modality, path in sample.files.items():
            assert path.is_relative_to(tmp_path)
            assert path.read_bytes() == originals[name].files[modality].read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "few/train/prompts.jsonl").read_text().splitlines()]
    given = map(json.loads, (prompt_scenes / "test" / "prompts.jsonl").read_text().splitlines())
    captions = {line["id"]: line["captions"] for line in given}
    assert lines == [{"id": name, "captions": captions[name]} for name in samples]
    assert not check_dataset(tmp_path / "few").problems
