"""A tokenizer of whole words, for small encoders that are trained on the captions of one dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Punctuation, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mmdit.errors import UserError

PAD, BOS, UNKNOWN, EOS = "<pad>", "<bos>", "<unk>", "<eos>"
# Their ids are 0 to 3. That of EOS is not 2: transformers' CLIP takes 2 for the sign of an old checkpoint, and then
# pools at the largest id instead of at the end of the text.
SPECIAL = (PAD, BOS, UNKNOWN, EOS)


def word_tokenizer(
    texts: Iterable[str], extra_tokens: Sequence[str] = (), *, max_length: int = 77
) -> PreTrainedTokenizerFast:
    """Build a fast tokenizer whose words are those of ``texts``.

    Words are in lower case, split at whitespace; every punctuation mark is a word. A text becomes <bos> words <eos>, and a
    word that no text had <unk>. The same words give the same ids, in whatever order the texts come.

    Args:
        texts: the captions.
        extra_tokens: further special tokens, such as the mark of an image; their ids follow those of ``SPECIAL``, in this
            order, and they are found in a text as they are written.
        max_length: ``model_max_length``, with <bos> and <eos>.

    Raises:
        UserError: texts without a word.
    """
    splitter = PreTokenizers([WhitespaceSplit(), Punctuation("isolated")])
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower())}
    special = [*SPECIAL, *extra_tokens]
    words -= set(special)
    if not words:
        raise UserError("the captions have no words: give texts")
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = splitter
    ends = [(BOS, vocabulary[BOS]), (EOS, vocabulary[EOS])]
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        unk_token=UNKNOWN,
        eos_token=EOS,
        additional_special_tokens=list(extra_tokens),
        padding_side="right",
        model_max_length=max_length,
    )
