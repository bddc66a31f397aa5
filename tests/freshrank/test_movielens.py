"""Reading MovieLens-1M: what becomes what, in which order, without looking ahead. All rows here are made up."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from freshrank.config import load_config
from freshrank.movielens import SCENARIOS, LabelledRows, read_ml_1m
from stream.schema import SchemaConfig, TaskConfig

CONFIG = Path(__file__).parents[2] / "configs" / "ml-1m.yaml"
USERS = (
    "user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token\n"
    "1m_1\t1\tF\t10\t48067\n1m_2\t25\tM\t16\t70072\n1m_3\t56\tM\t15\t55117-99\n"
)
ITEMS = (
    "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\n"
    "Ant (1990)\tAnt\t1990\tAnimation Children's\nBee (1995)\tBee\t1995\tSci-Fi\nCow (2000)\tCow\t\t\n"
)
RATINGS = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "1m_1\tAnt (1990)\t5\t100\n"
    "1m_1\tBee (1995)\t4\t100\n"
    "1m_2\tBee (1995)\t3\t50\n"
    "1m_1\tCow (2000)\t2\t101\n"
    "1m_3\tDoe (2001)\t1\t101\n"
    "1m_1\tBee (1995)\t5\t99\n"
)
SCHEMA = load_config(CONFIG).schema


def folder_of(path: Path, **replaced: str) -> Path:
    path.mkdir()
    for name, text in {"inter": RATINGS, "item": ITEMS, "user": USERS, **replaced}.items():
        (path / f"ml-1m.{name}").write_text(text, encoding="utf-8")
    return path


def rows_of(path: Path) -> LabelledRows:
    (chunk,) = read_ml_1m(path, SCHEMA)
    return chunk


def test_ratings_come_in_time_order_with_the_labels_of_all_tasks(tmp_path: Path) -> None:
    rows = rows_of(folder_of(tmp_path / "ml"))
    assert rows.columns.user_id == ["1m_2", "1m_1", "1m_1", "1m_1", "1m_1", "1m_3"]
    assert [name.partition(" ")[0] for name in rows.columns.item_id] == ["Bee", "Bee", "Ant", "Bee", "Cow", "Doe"]
    assert tuple(SCHEMA.tasks) == ("click", "like", "dislike")
    expected = [[0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]  # 3, 5, 5, 4, 2, 1
    np.testing.assert_array_equal(rows.label_BT, np.array(expected, np.float32))


def test_scenarios_are_age_domains_and_features_those_of_user_and_film(tmp_path: Path) -> None:
    columns = rows_of(folder_of(tmp_path / "ml")).columns
    assert columns.scenario == ["adult", "young", "young", "young", "young", "mature"]
    assert columns.user["age"] == ["25", "1", "1", "1", "1", "56"]
    assert columns.user["zip"][-1] == "551"
    assert columns.item["genres"][1:3] == [["Sci-Fi"], ["Animation", "Children's"]]
    assert list(columns.item["year"]) == [1995.0, 1995.0, 1990.0, 1995.0, None, None]


def test_a_history_holds_only_films_liked_in_an_earlier_second(tmp_path: Path) -> None:
    sequence = rows_of(folder_of(tmp_path / "ml")).columns.sequence
    assert sequence is not None
    of_first_user = [[name.partition(" ")[0] for name in names] for names in sequence.item_id[1:5]]
    assert of_first_user == [[], ["Bee"], ["Bee"], ["Bee", "Ant", "Bee"]]
    assert sequence.action[4] == ["click", "like", "like"]


def test_a_zip_file_that_has_the_files_gives_the_same_rows(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "ml")
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as packed:
        for file in folder.iterdir():
            packed.write(file, f"inside/data/{file.name}")
    one, other = rows_of(folder), rows_of(tmp_path / "some.whl")
    assert one.columns.item_id == other.columns.item_id
    np.testing.assert_array_equal(one.label_BT, other.label_BT)


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"inter": RATINGS.replace("4\t100", "four\t100")}, r"ml-1m\.inter line 3: rating: 'four' is not a num"),
        ({"inter": RATINGS.replace("1m_3\tDoe", "1m_9\tDoe")}, r"line 6: user_id: '1m_9' is not in ml-1m\.user"),
        ({"user": USERS.replace("gender", "sex")}, r"ml-1m\.user: column gender is missing"),
        ({"item": ITEMS + "Elk (2002)\n"}, r"ml-1m\.item line 5: 1 values for 4 columns"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, replaced: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        list(read_ml_1m(folder_of(tmp_path / "ml", **replaced), SCHEMA))
    assert "\n" not in str(caught.value)


def test_a_schema_of_another_data_set_and_missing_files_are_refused(tmp_path: Path) -> None:
    task = TaskConfig(action="click", window_ms=1)
    with pytest.raises(ValueError, match="scenarios: .* is not allowed; ml-1m has young, adult, mature"):
        list(read_ml_1m(tmp_path, SchemaConfig(scenarios=("home",), tasks={"click": task})))
    with pytest.raises(ValueError, match="tasks: 'buy' is not allowed; ml-1m has click, like, dislike"):
        list(read_ml_1m(tmp_path, SchemaConfig(scenarios=SCENARIOS, tasks={"buy": task})))
    with pytest.raises(ValueError, match=r"ml-1m\.user is not there; a folder, wheel or zip file"):
        list(read_ml_1m(tmp_path, SCHEMA))
