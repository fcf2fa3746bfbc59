"""Who may write to the folder of a trial."""

import pytest

from lqray.orchestration.worker.fencing import Fence, LostClaimError, new_folder, own_name
from lqray.training.storage import LocalFolder


def test_a_later_claim_or_start_shuts_out_the_earlier_one(tmp_path):
    folder = LocalFolder(tmp_path)
    first, again, taken = (Fence(folder, claim) for claim in ("board 9 1", "board 9 2", "board 10 1"))
    first.take()
    first.check()
    again.take()
    for one in (again, taken):
        one.take()
        one.check()
        with pytest.raises(LostClaimError, match="the trial was taken over"):
            first.check()
        with pytest.raises(LostClaimError):
            first.take()
    with pytest.raises(LostClaimError):
        again.check()


def test_an_earlier_worker_that_wrote_at_the_same_moment_takes_nothing_away(tmp_path):
    folder = LocalFolder(tmp_path)
    later = Fence(folder, "board 2 1")
    later.take()
    folder.write("claim", b"board 1 1")
    later.check()
    later.check()
    (tmp_path / "claim").unlink()
    later.check()
    assert folder.read("claim") == b"board 2 1"


def test_a_run_of_another_store_shuts_out_too(tmp_path):
    folder = LocalFolder(tmp_path)
    mine = Fence(folder, "board 7 1")
    mine.take()
    Fence(folder, "another 1 1").take()
    with pytest.raises(LostClaimError, match="a run of another store uses the same folder"):
        mine.check()


def test_folders_of_new_runs_are_new(tmp_path):
    wanted = str(tmp_path / "some-experiment-2" / "trial")
    assert [new_folder(wanted) for _ in range(3)] == [wanted, f"{wanted}-2", f"{wanted}-3"]
    assert new_folder(f"{wanted}-3") == f"{wanted}-4"


def test_an_address_that_others_wrote_leads_to_no_other_folder():
    for said in ("/x/abc", "s3://bucket/x/abc/", "abc"):
        assert own_name(said, "abc") == "abc"
    assert own_name("/elsewhere/abc-2", "abc") == "abc-2"
    assert own_name("/elsewhere/abc-2-3", "abc") == "abc-2-3"
    for said in ("", "/", "/x/..", "/x/.", "/x/abc/..", "/x/abcd", "/x/abc\n", "/x/abc-", "/x/other"):
        assert own_name(said, "abc") == ""
