"""The environment over HTTP."""

import pytest

ROW = {
    "responses_create_params": {"input": "?"},
    "response": {"output": [{"type": "message", "content": [{"type": "output_text", "text": "\\boxed{A}"}]}]},
    "options": [{"A": "yes"}, {"B": "no"}, {"C": None}],
    "expected_answer": "a ",
}


async def test_verify_answers_with_reward_and_answers(provider, gymlet):
    server = await gymlet(provider.url)
    status, verified = await server.post_json("/mcqa/verify", ROW)
    assert status == 200
    assert verified == {
        "responses_create_params": ROW["responses_create_params"],
        "response": ROW["response"],
        "reward": 1.0,
        "expected_answer": "A",
        "extracted_answer": "A",
    }


async def test_the_servers_mode_wins_over_the_rows(provider, gymlet):
    server = await gymlet(provider.url, "plain", "++mcqa.resources_servers.mcqa.grading_mode=lenient_answer_colon")
    _, verified = await server.post_json("/mcqa/verify", ROW | {"grading_mode": "strict_single_letter_boxed"})
    assert (verified["reward"], verified["extracted_answer"]) == (0.0, None)


REFUSED = {
    "no options": ({"options": []}, "'options' must hold at least one option"),
    "options of another kind": ({"options": "AB"}, "'options' must be a list, not a string"),
    "an unknown mode": ({"grading_mode": "strict_boxed"}, "'grading_mode' is 'strict_boxed'"),
    "no response": ({"response": None}, "'response' must be an object, not null"),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
async def test_a_row_that_cannot_be_graded_is_refused(provider, gymlet, change, words):
    server = await gymlet(provider.url)
    status, answer = await server.post_json("/mcqa/verify", ROW | change)
    assert status == 400
    assert words in answer["error"]["message"]


async def test_aggregate_metrics(provider, gymlet):
    server = await gymlet(provider.url)
    rows = [
        {"_ng_task_index": task, "_ng_rollout_index": rollout, "reward": reward, "extracted_answer": answer}
        for task, rollout, reward, answer in ((0, 0, 1.0, "A"), (0, 1, 1.0, "A"), (1, 0, 0.0, "B"), (1, 1, 1.0, "C"))
    ]
    _, metrics = await server.post_json("/mcqa/aggregate_metrics", {"verify_responses": rows})
    assert set(metrics["key_metrics"]) == {
        "mean/reward",
        "pass@1/accuracy",
        "pass@1[avg-of-2]/accuracy",
        "pass@1[avg-of-2]/no_answer",
        "pass@2/no_answer",
        "majority@2/accuracy",
    }
    assert metrics["agent_metrics"]["pass@2/accuracy"] == 100


async def test_a_session_is_opened_with_an_empty_answer(provider, gymlet):
    server = await gymlet(provider.url)
    assert await server.post_json("/mcqa/seed_session", {}) == (200, {})
