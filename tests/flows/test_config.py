"""Parameters: defaults, a YAML file, ``--set``; what is misspelt is named before anything runs."""

import pytest
import yaml
from pydantic import ValidationError

from flows.config import LifecycleConfig, check_methods, load_config
from infra.errors import ConfigurationError

STAGES = [
    "validate",
    "label_noise",
    "curate",
    "pretrain",
    "finetune",
    "adapt",
    "unlearn",
    "compress",
    "naive",
    "evaluate",
    "register",
]


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "run.yaml").write_text(text)
        return tmp_path / "run.yaml"

    return write


def test_defaults_are_complete_and_fit_their_methods():
    config = load_config()
    assert config == LifecycleConfig()
    assert list(config.stages()) == STAGES
    assert config.data == "scans"
    check_methods(config, "image")


def test_defaults_survive_being_shown_and_read_again(file):
    shown = yaml.safe_dump(load_config().model_dump(mode="json", by_alias=True))
    assert load_config(file(shown)) == load_config()


def test_file_then_overrides(file):
    path = file("finetune: {epochs: 3, lr: 0.1}\nnetwork: {channels: [4, 8]}\n")
    config = load_config(path, ["finetune.epochs=5", "data=mine"])
    assert (config.finetune.epochs, config.finetune.lr) == (5, 0.1)
    assert config.network.channels == (4, 8)
    assert config.data == "mine"
    assert load_config(path, ["data=mine"], data="other").data == "other"


@pytest.mark.parametrize(
    ("override", "value"),
    [("finetune.lr=1e-3", 0.001), ("finetune.lr=2E+0", 2.0), ("finetune.lr=0.5", 0.5), ("finetune.lr=1", 1.0)],
)
def test_numbers_are_read_as_people_write_them(override, value, file):
    assert load_config(None, [override]).finetune.lr == value
    name, _, text = override.partition("=")
    assert load_config(file(f"finetune: {{lr: {text}}}")).finetune.lr == value
    method = load_config(None, [f"pretrain.parameters.{name.removeprefix('finetune.')}={text}"])
    assert method.pretrain.parameters["lr"] == value  # what a method gets is a number, too


def test_values_may_be_lists_words_and_switches():
    config = load_config(
        None, ["network.channels=[4, 8]", "adapt.enabled=false", "validate.near_duplicates=report", "data=a=b"]
    )
    assert config.network.channels == (4, 8)
    assert not config.adapt.enabled
    assert config.validate_.near_duplicates == "report"
    assert config.data == "a=b"


@pytest.mark.parametrize("word", ["off", "'off'", "OFF"])
def test_off_is_a_word_where_words_are_asked_for(word):
    assert load_config(None, [f"validate.near_duplicates={word}"]).validate_.near_duplicates == "off"


def test_one_parameter_of_a_method_leaves_the_others():
    default = load_config().compress.parameters
    changed = load_config(None, ["compress.parameters.seldom=3"]).compress.parameters
    assert changed == {**default, "seldom": 3}


def test_another_method_does_not_inherit_parameters():
    config = load_config(None, ["pretrain.method=rotnet"])
    assert (config.pretrain.method, config.pretrain.parameters) == ("rotnet", {})
    config = load_config(None, ["pretrain.method=rotnet", "pretrain.parameters.lr=0.5"])
    assert config.pretrain.parameters == {"lr": 0.5}


def test_seed_reaches_every_stage_that_has_none_of_its_own():
    config = load_config(None, ["adapt.seed=7"], seed=3)
    seeds = {name: stage.seed for name, stage in config.stages().items()}
    assert seeds == dict.fromkeys(STAGES, 3) | {"adapt": 7}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetne.epochs=1", r"finetne: there is no such name. Did you mean 'finetune'\?"),
        ("validat.seed=1", r"validat: .* Did you mean 'validate'\?"),
        ("finetune.epoch=1", r"finetune\.epoch: there is no such name. Did you mean 'epochs'\?"),
        ("validate.near_duplicate=report", r"validate\.near_duplicate: .* Did you mean 'near_duplicates'\?"),
        ("network.zzz=1", r"network\.zzz: .* Known: channels, embedding_dim, .*widths\."),
        ("finetune.epochs=0", r"finetune\.epochs: .* greater than or equal to 1, got 0\."),
        ("finetune.epochs=many", r"finetune\.epochs: .* valid integer.*, got 'many'\."),
        ("validate.near_duplicates=keep", "validate.near_duplicates: Input should be 'remove', 'report' or 'off'"),
        ("adapt=3", "adapt: Input should be a valid dictionary"),
        ("finetune.epochs", "--set takes stage.field=value, got 'finetune.epochs'"),
        ("=3", "--set takes stage.field=value, got '=3'"),
        ("finetune.lr=[1", "the value is not readable; put text in quotes"),
        ("data.name=x", None),
    ],
)
def test_what_can_not_be_used_is_named(override, message):
    with pytest.raises(ConfigurationError, match=message):
        load_config(None, [override])


def test_group_below_a_value_is_refused():
    with pytest.raises(ConfigurationError, match=r"--set finetune.epochs: 'finetune' is a value, not a group"):
        load_config(None, ["finetune=3", "finetune.epochs=1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finetune: [", "can not be read"),
        ("- a list", "must be a mapping of stage to fields"),
        ("", "must be a mapping"),
        ("finetune: {epoch: 1}", "Did you mean 'epochs'"),
    ],
)
def test_unusable_file_is_named(file, text, message):
    with pytest.raises(ConfigurationError, match=message):
        load_config(file(text))


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"absent\.yaml can not be read"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigurationError, match=r"binary\.yaml can not be read"):
        load_config(tmp_path / "binary.yaml")


def test_config_can_not_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        load_config().data = "other"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "pretrain.method=rotnett",
            r"Stage 'pretrain': There is no method 'rotnett' .* Did you mean 'rotnet'",
        ),
        ("pretrain.method=udfc", r"Stage 'pretrain': There is no method 'udfc' in the stage 'pretrain'"),
        ("adapt.parameters.warmth=1", r"Stage 'adapt': the method 'glc' has no parameter 'warmth'"),
        ("label_noise.parameters.random_state=1", r"has no parameter 'random_state'"),
    ],
)
def test_methods_and_their_parameters_are_checked(override, message):
    with pytest.raises(ConfigurationError, match=message):
        check_methods(load_config(None, [override]), "image")


def test_misspelt_parameter_gets_the_nearest_name():
    import inspect

    from models.registry import get_method

    name = next(name for name in inspect.signature(get_method("glc").cls).parameters if len(name) > 4)
    with pytest.raises(ConfigurationError, match=f"Did you mean '{name}'"):
        check_methods(load_config(None, [f"adapt.parameters.{name[:-1]}=1"]), "image")


def test_stage_that_is_left_out_is_not_checked():
    check_methods(load_config(None, ["adapt.method=nonsense", "adapt.enabled=false"]), "image")


def test_image_method_refuses_tables_before_anything_runs():
    with pytest.raises(ConfigurationError, match="takes image data, and this is table data") as error:
        check_methods(load_config(), "table")
    text = str(error.value)
    assert error.value.kind == "table"
    assert f"--set {error.value.stage}.enabled=false" in text


def test_tables_pass_when_every_stage_that_can_not_take_them_is_left_out():
    overrides = []
    for _ in STAGES:
        try:
            check_methods(load_config(None, overrides), "table")
            break
        except ConfigurationError as error:
            overrides.append(f"{error.stage}.enabled=false")
    check_methods(load_config(None, overrides), "table")
    assert 0 < len(overrides) < len(STAGES)
