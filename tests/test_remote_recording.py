"""Recording into a bucket: training goes on whatever the network does, and nothing is lost."""

from __future__ import annotations

from conftest import ProjectDirectory, linux

pytestmark = linux


def test_a_run_is_in_the_bucket_when_it_has_ended(project: ProjectDirectory, s3_url: str) -> None:
    project.write("replicate.yaml", f"repository: {s3_url}\n")
    done = project.run("""
        import replicate
        experiment = replicate.init(params={"a": 1})
        open("m", "wb").write(b"model")
        experiment.checkpoint("m", step=1, metrics={"loss": 0.5})
        experiment.log({"x": 1})
        print("hello")
    """)
    print(done.stderr)
    record = project.record()
    assert record.status == "finished"
    assert [c.metrics for c in record.checkpoints] == [{"loss": 0.5}]
