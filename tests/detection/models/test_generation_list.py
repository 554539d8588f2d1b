from detection.columns.state_columns import digest
from detection.models.generation_list import KEPT, Generations


def test_generations_are_listed_newest_first_with_what_became_of_them() -> None:
    generations = Generations()
    generations.took_effect(1, "model-1-a.pt", 50_000, ("transformer",))
    generations.was_refused(2, "model-2-b.pt", 100_000, "the anchor set got worse: .91 to .84")
    generations.took_effect(3, "model-3-c.pt", 150_000, ("transformer", "forest"))
    assert [(one["generation"], one["line"], one["promoted"], one["reason"], one["in_force"]) for one in
            generations.listing("model-3-c.pt")] == [
        (3, 150_000, True, None, True),
        (2, 100_000, False, "the anchor set got worse: .91 to .84", False),
        (1, 50_000, True, None, False),
    ]  # fmt: skip
    assert generations.listing("")[0]["members"] == ["transformer", "forest"]
    assert (generations.refused, generations.refusal) == (1, "")
    generations.was_refused(4, "model-4-d.pt", 200_000, "the holdout got worse")
    assert (generations.refused, generations.refusal) == (2, "the holdout got worse")


def test_one_that_takes_effect_again_is_listed_once_with_its_new_line() -> None:
    generations = Generations()
    for generation, line in ((1, 10), (2, 20), (1, 30)):
        generations.took_effect(generation, f"model-{generation}", line, ())
    assert [(one["generation"], one["line"]) for one in generations.listing("model-1")] == [(2, 20), (1, 30)]


def test_the_oldest_are_forgotten_and_refusals_stay_counted() -> None:
    generations = Generations()
    assert generations.refusal == ""
    generations.was_refused(1, "model-1", 1, "worse")
    for generation in range(2, KEPT + 2):
        generations.took_effect(generation, f"model-{generation}", generation, ())
    assert len(generations.listing("")) == KEPT and (generations.refused, generations.refusal) == (1, "")


def test_the_state_holds_all_of_it() -> None:
    generations = Generations()
    empty = digest(generations.export())
    generations.took_effect(2, "model-2", 20, ("transformer",))
    generations.took_effect(1, "model-1", 30, ("transformer",))
    generations.was_refused(3, "model-3", 40, "é\n")
    again = Generations.load(generations.export())
    assert again.listing("model-1") == generations.listing("model-1")
    assert digest(again.export()) == digest(generations.export()) != empty
