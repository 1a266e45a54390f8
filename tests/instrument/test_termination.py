"""What is done before a process that is told to end does end."""

import os
import signal
import threading

import pytest

from instrument.termination import before_termination


@pytest.fixture
def handlers():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def _end_of(child):
    """The signal that a forked process died of, after `child` ran in it."""
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_everything_is_done_and_the_process_dies_of_the_signal(handlers, tmp_path):
    def child():
        before_termination([lambda state: (tmp_path / "one").write_text(state), lambda state: (tmp_path / "two").write_text(state)])
        os.kill(os.getpid(), signal.SIGTERM)

    assert _end_of(child) == -signal.SIGTERM
    assert (tmp_path / "one").read_text() == "was ended from outside (SIGTERM)"
    assert (tmp_path / "two").exists()


def test_an_act_that_fails_does_not_keep_the_process_alive(handlers):
    def child():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        before_termination([lambda state: 1 / 0])
        os.kill(os.getpid(), signal.SIGTERM)

    assert _end_of(child) == -signal.SIGTERM


def test_a_child_process_inherits_nothing_to_do(handlers, tmp_path):
    before_termination([lambda state: (tmp_path / "written").write_text(state)])
    assert _end_of(lambda: os.kill(os.getpid(), signal.SIGTERM)) == -signal.SIGTERM
    assert not (tmp_path / "written").exists()


def test_a_script_that_handles_the_signal_itself_is_left_alone(handlers):
    def mine(number, frame):
        pass

    signal.signal(signal.SIGTERM, mine)
    before_termination([print])
    assert signal.getsignal(signal.SIGTERM) is mine


def test_outside_of_the_main_thread_and_with_nothing_to_do_nothing_is_installed(handlers):
    thread = threading.Thread(target=before_termination, args=([print],))
    thread.start()
    thread.join()
    before_termination([])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_child_process_may_have_acts_of_its_own_in_place_of_those_it_inherits(handlers, tmp_path):
    before_termination([lambda state: (tmp_path / "parents").write_text(state)])

    def child():
        before_termination([lambda state: (tmp_path / "childs").write_text(state)])
        before_termination([lambda state: (tmp_path / "second").write_text(state)])  # this process has its handler by now
        os.kill(os.getpid(), signal.SIGTERM)

    assert _end_of(child) == -signal.SIGTERM
    assert sorted(p.name for p in tmp_path.iterdir()) == ["childs"]
