"""Models of real architectures with random weights, a few kilobytes each: for shapes, schemas and errors.

What they answer means nothing. Two learn something in seconds, and are for meaning: whether an image is red
or blue, and which document holds the word of a query.
"""

from __future__ import annotations

import functools
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, ParamSpec

P = ParamSpec("P")

SPECIAL: Final = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS: Final = [
    *["the", "a", "cat", "dog", "bird", "fish", "sat", "ran", "on", "mat", "hill", "good", "bad"],
    *["this", "example", "is", ".", ",", "red", "blue", "green", "sun", "moon", "rain"],
]
SMALL: Final = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
SIZE: Final = {"height": 32, "width": 32}


def repeatable(write: Callable[P, None]) -> Callable[P, None]:
    """Let ``write`` draw the same weights in each run."""

    @functools.wraps(write)
    def seeded(*args: P.args, **kwargs: P.kwargs) -> None:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            write(*args, **kwargs)

    return seeded


def tokenizer(folder: Path, **more: Any) -> Any:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({word: at for at, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        **{"model_max_length": 64, **more},
    )
    made.save_pretrained(folder)
    return made


def _bert(folder: Path, kind: str, labels: list[str] | None = None, **more: Any) -> Any:
    import transformers

    tokenizer(folder)
    named = {} if labels is None else {
        "id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)},
    }  # fmt: skip
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, **(SMALL | named | more)
    )
    model = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    return model


def learn(model: Any, loss: Callable[[], Any], rate: float, *, below: float = 0.02) -> None:
    """Train until it has learned it, on one thread: with models this small, several are slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _learn(model, loss, rate, below)
    finally:
        torch.set_num_threads(threads)


def _learn(model: Any, loss: Callable[[], Any], rate: float, below: float) -> None:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    mean = 1.0
    for _ in range(3000):
        now = loss()
        optimizer.zero_grad()
        now.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = 0.9 * mean + 0.1 * now.item()
        if mean < below:
            return
    raise AssertionError(f"it has not learned it: the loss is {mean}")


@repeatable
def text_classification(folder: Path) -> None:
    _bert(folder, "BertForSequenceClassification", ["bad", "good"])


@repeatable
def text_classification_without_mask(folder: Path) -> None:
    """FNet, which mixes all tokens of a text without an attention mask."""
    from transformers import FNetConfig, FNetForSequenceClassification

    words = tokenizer(folder, model_input_names=["input_ids", "token_type_ids"])
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    config = FNetConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, intermediate_size=32, **labels
    )
    model = FNetForSequenceClassification(config)
    for parameter in model.parameters():  # otherwise the results hardly differ
        parameter.data.normal_()
    model.save_pretrained(folder)


@repeatable
def zero_shot_classification(folder: Path) -> None:
    _bert(folder, "BertForSequenceClassification", ["contradiction", "neutral", "entailment"])


@repeatable
def token_classification(folder: Path) -> None:
    _bert(folder, "BertForTokenClassification", ["O", "B-ANIMAL", "I-ANIMAL"])


@repeatable
def fill_mask(folder: Path) -> None:
    _bert(folder, "BertForMaskedLM")


@repeatable
def reranking(folder: Path) -> None:
    """Learns in seconds whether the second of two texts holds the word of the first."""
    import random

    import torch

    model = _bert(
        folder, "BertForSequenceClassification", ["relevant"],
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    words = tokenizer(folder)
    chance = random.Random(0)
    subjects = WORDS[2:6]

    def loss() -> Any:
        queries = [chance.choice(subjects) for _ in range(64)]
        named = [query if chance.random() < 0.5 else chance.choice(subjects) for query in queries]
        texts = [f"{chance.choice(['the', 'a'])} {word} {chance.choice(['sat', 'ran'])}" for word in named]
        wanted = torch.tensor([[float(a == b)] for a, b in zip(queries, named, strict=True)])
        inputs = words(queries, texts, padding=True, return_tensors="pt")
        return torch.nn.functional.binary_cross_entropy_with_logits(model(**inputs).logits, wanted)

    learn(model, loss, 5e-4)
    model.save_pretrained(folder)


@repeatable
def image_classification(folder: Path) -> None:
    """Learns in seconds whether an image is red or blue."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    ViTImageProcessorPil(size=SIZE).save_pretrained(folder)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=32,
            patch_size=8,
            id2label={0: "red", 1: "blue"},
            label2id={"red": 0, "blue": 1},
            **SMALL,
        )
    )

    def loss() -> Any:
        wanted = torch.randint(0, 2, (32,))
        pixels = torch.rand(32, 3, 32, 32) * 0.4 - 1.0  # dark, with noise
        pixels[torch.arange(32), wanted * 2] += 1.5
        return model(pixel_values=pixels, labels=wanted).loss

    learn(model, loss, 2e-3)
    model.save_pretrained(folder)


@repeatable
def object_detection(folder: Path) -> None:
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil

    config = YolosConfig(
        image_size=[32, 32], patch_size=8, num_detection_tokens=5, id2label={0: "red", 1: "blue"},
        label2id={"red": 0, "blue": 1}, **SMALL,
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size=SIZE).save_pretrained(folder)


@repeatable
def image_captioning(folder: Path) -> None:
    """BLIP, which goes on from a beginning."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

    text = {
        **SMALL, "vocab_size": len(SPECIAL + WORDS), "encoder_hidden_size": 16, "projection_dim": 16,
        "max_position_embeddings": 512, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3,
        "pad_token_id": 0,
    }  # fmt: skip
    sight = {**SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config=sight, image_text_hidden_size=16, projection_dim=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size=SIZE), tokenizer(folder)).save_pretrained(folder)


@repeatable
def captioning_without_beginning(folder: Path) -> None:
    """An image encoder and a text decoder put together, as ViT-GPT2 is."""
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessorPil,
    )

    tokenizer(folder)
    encoder = ViTConfig(image_size=32, patch_size=8, **SMALL)
    decoder = GPT2Config(
        vocab_size=len(SPECIAL + WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=2,
        eos_token_id=3, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = VisionEncoderDecoderModel(config=config)
    model.generation_config.decoder_start_token_id = 2
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    ViTImageProcessorPil(size=SIZE).save_pretrained(folder)


@repeatable
def summarization(folder: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer(folder)
    config = T5Config(
        vocab_size=len(SPECIAL + WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)


@repeatable
def t5_told_what_to_do(folder: Path) -> None:
    """The same, told what to do by a word before the text."""
    summarization(folder)
    config = folder / "config.json"
    told = {"task_specific_params": {"summarization": {"prefix": "good "}}}
    config.write_text(json.dumps(json.loads(config.read_text()) | told))


@repeatable
def translation(folder: Path) -> None:
    """NLLB, which knows many languages."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    letters = {
        mark: at
        for at, mark in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"])
    }
    words = NllbTokenizer(vocab=letters, merges=[], src_lang="eng_Latn")
    words.save_pretrained(folder)
    config = M2M100Config(
        vocab_size=len(words), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=1024,
        init_std=1.0,  # else it repeats the code of the language, whatever the text is
    )  # fmt: skip
    M2M100ForConditionalGeneration(config).save_pretrained(folder)


@repeatable
def language_model(folder: Path, **more: Any) -> None:
    """A causal language model without a chat template; vLLM needs heads of at least 32 numbers on a CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer(folder)
    config = LlamaConfig(
        vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, bos_token_id=2, eos_token_id=3,
        pad_token_id=0, **(SMALL | more),
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@repeatable
def text_to_speech(folder: Path) -> None:
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    config = VitsConfig(
        vocab_size=38, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, flow_size=16,
        spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], depth_separable_num_layers=1,
        prior_encoder_num_flows=1, prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=1, duration_predictor_flow_bins=4, duration_predictor_filter_channels=16,
        wavenet_dilation_rate=1,
    )  # fmt: skip
    VitsModel(config).save_pretrained(folder)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(
        json.dumps({mark: at for at, mark in enumerate("_ abcdefghijklmnopqrstuvwxyz'-.,!?")})
    )
    VitsTokenizer(
        str(vocabulary), phonemize=False, is_uroman=False, pad_token="_", unk_token="-"
    ).save_pretrained(folder)


@repeatable
def csm(folder: Path) -> None:
    """CSM with the sampling rate and the frame rate of the real one: 24000 samples/s and 12.5 frames/s."""
    from transformers import (
        CsmConfig,
        CsmForConditionalGeneration,
        CsmProcessor,
        EncodecFeatureExtractor,
        GenerationConfig,
    )

    words = tokenizer(folder, model_max_length=2048)
    words.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>", "<|audio_eos|>"]})
    rows = {"num_codebooks": 4, "vocab_size": 35, "num_key_value_heads": 1, "initializer_range": 1.0}
    codec = {
        "model_type": "mimi", "hidden_size": 16, "num_filters": 2, "num_residual_layers": 1,
        "codebook_size": 32, "vector_quantization_hidden_dimension": 16, "codebook_dim": 16,
        "upsample_groups": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "num_quantizers": 4, "intermediate_size": 32, "head_dim": 8,
    }  # fmt: skip
    audio_token, audio_end = words.convert_tokens_to_ids(["<|AUDIO|>", "<|audio_eos|>"])
    config = CsmConfig(
        text_vocab_size=len(words), max_position_embeddings=512, codebook_pad_token_id=34,
        codebook_eos_token_id=0, bos_token_id=2, eos_token_id=None, pad_token_id=audio_token,
        audio_token_id=audio_token, audio_eos_token_id=audio_end, codec_config=codec,
        depth_decoder_config={**SMALL, **rows, "backbone_hidden_size": 16, "max_position_embeddings": 5},
        **rows, **SMALL,
    )  # fmt: skip
    model = CsmForConditionalGeneration(config)
    both = model.codec_model.quantizer
    for quantizer in (both.semantic_residual_vector_quantizer, both.acoustic_residual_vector_quantizer):
        for layer in quantizer.layers:  # otherwise all tokens sound alike
            layer.codebook.embed_sum.normal_()
            layer.codebook.cluster_usage.fill_(1)
    model.generation_config = GenerationConfig(do_sample=True)
    model.save_pretrained(folder)
    template = (
        "{% for message in messages %}{{ bos_token }} {{ message.role }} {{ message.content[0].text }} "
        "{{ eos_token }}{% if message.content | length > 1 %}<|AUDIO|><|audio_eos|>{% endif %}{% endfor %}"
    )
    CsmProcessor(EncodecFeatureExtractor(), words, chat_template=template).save_pretrained(folder)


@repeatable
def musicgen(folder: Path) -> None:
    """MusicGen with one channel of 3200 samples/s and 50 tokens/s, in four codebooks."""
    _musicgen(folder, "Musicgen", channels=1)


@repeatable
def musicgen_stereo(folder: Path) -> None:
    _musicgen(folder, "Musicgen", channels=2)


@repeatable
def musicgen_melody(folder: Path) -> None:
    _musicgen(folder, "MusicgenMelody", channels=1)


def _musicgen(folder: Path, name: str, *, channels: int) -> None:
    import transformers

    words = tokenizer(folder)
    text = transformers.T5Config(
        vocab_size=len(words),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    codec = transformers.EncodecConfig(
        sampling_rate=3200, audio_channels=1, upsampling_ratios=[8, 8], num_filters=4, hidden_size=16,
        codebook_size=32, codebook_dim=16, num_lstm_layers=1, target_bandwidths=[1.0],
        normalize=False, use_causal_conv=False,
    )  # fmt: skip
    decoder = {
        "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16,
        "num_codebooks": 4 * channels, "audio_channels": channels, "pad_token_id": 32, "bos_token_id": 32,
    }  # fmt: skip
    decoder_config = getattr(transformers, f"{name}DecoderConfig")(**decoder)
    config = getattr(transformers, f"{name}Config")(
        text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder_config.to_dict()
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    for layer in model.audio_encoder.quantizer.layers:  # otherwise all tokens sound alike
        layer.codebook.embed.normal_()
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=32, pad_token_id=32, bos_token_id=32, do_sample=True, guidance_scale=3.0
    )
    model.save_pretrained(folder)


@repeatable
def automatic_speech_recognition(folder: Path) -> None:
    """wav2vec2, which spells."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    folder.mkdir(parents=True, exist_ok=True)
    config = Wav2Vec2Config(
        vocab_size=32, conv_dim=[8] * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, **SMALL
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    marks = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_lowercase, "'"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({mark: at for at, mark in enumerate(marks)}))
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)


@repeatable
def whisper(folder: Path) -> None:
    """Whisper as transformers has it, of two languages."""
    from tokenizers import pre_tokenizers
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    letters = {mark: at for at, mark in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = WhisperTokenizer(vocab=letters, merges=[])
    marks = (
        "endoftext startoftranscript en de translate transcribe startoflm startofprev nospeech notimestamps"
    )
    words.add_special_tokens({"additional_special_tokens": [f"<|{mark}|>" for mark in marks.split()]})
    words.add_tokens([f"<|{at * 0.02:.2f}|>" for at in range(1501)])
    words.save_pretrained(folder)
    ids = {mark: words.convert_tokens_to_ids(f"<|{mark}|>") for mark in marks.split()}
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), ids["endoftext"])
    ends["decoder_start_token_id"] = ids["startoftranscript"]
    config = WhisperConfig(
        vocab_size=len(words), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=64, **ends,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **ends,
        max_length=40,
        lang_to_id={f"<|{code}|>": ids[code] for code in ("en", "de")},
        task_to_id={task: ids[task] for task in ("transcribe", "translate")},
        is_multilingual=True,
        no_timestamps_token_id=ids["notimestamps"],
        prev_sot_token_id=ids["startofprev"],
        alignment_heads=[[0, 0]],
        return_timestamps=True,
    )
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


@repeatable
def captioning_by_chat(folder: Path) -> None:
    """LLaVA, which is asked in a chat."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer(folder)
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sight = CLIPVisionConfig(
        image_size=32, patch_size=8, projection_dim=16, **(SMALL | {"num_hidden_layers": 2})
    )
    speech = LlamaConfig(
        vocab_size=len(words),
        max_position_embeddings=128,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        **SMALL,
    )
    config = LlavaConfig(
        vision_config=sight.to_dict(), text_config=speech.to_dict(),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)


#: task -> what writes a model for it into a folder
MAKERS: Final[dict[str, Callable[[Path], None]]] = {
    "automatic-speech-recognition": automatic_speech_recognition,
    "text-to-speech": text_to_speech,
    "text-to-audio": musicgen,
    "reranking": reranking,
    "image-classification": image_classification,
    "image-captioning": image_captioning,
    "object-detection": object_detection,
    "translation": translation,
    "summarization": summarization,
    "text-classification": text_classification,
    "zero-shot-classification": zero_shot_classification,
    "token-classification": token_classification,
    "fill-mask": fill_mask,
}
