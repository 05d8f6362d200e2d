"""Which launches become graphs, and which graphs are kept."""

from engine.execution.cuda.graphs import Graphs


class FakeDevice:
    """Counts captures; a graph says so when it runs."""

    def __init__(self):
        self.said = []

    def capture(self, work):
        number = len([one for one in self.said if one == "captured"])
        self.said.append("captured")
        return lambda: self.said.append(f"graph {number}")


def new_graphs(limit=2, **settings):
    device, ran = FakeDevice(), []
    return Graphs(device, ran.append, limit=limit, **settings), device, ran


def test_work_is_launched_once_and_captured_when_it_comes_again():
    graphs, device, ran = new_graphs()
    graphs.run("a")
    assert (ran, device.said) == (["a"], [])
    graphs.run("a")
    graphs.run("a")
    assert device.said == ["captured", "graph 0", "graph 0"]
    assert ran == ["a"], "a graph does not run the work itself"
    assert graphs.num_captured == 1


def test_the_longest_unused_is_dropped_and_the_prepared_stay():
    graphs, device, ran = new_graphs(limit=2)
    graphs.prepare(["x"])
    for key in "aabbaacc":
        graphs.run(key)
    assert device.said.count("captured") == 4
    assert graphs.num_captured == 3
    del device.said[:], ran[:]
    for key in "xac":
        graphs.run(key)
    assert ran == []
    assert device.said == ["graph 0", "graph 1", "graph 3"]
    graphs.run("b")
    assert ran == ["b"], "b was dropped"


def test_what_must_not_be_captured_is_launched_and_not_remembered():
    graphs, device, ran = new_graphs()
    for _ in range(3):
        graphs.run("long", may_capture=False)
    assert (ran, device.said) == (["long"] * 3, [])


def test_without_graphs_everything_is_launched():
    graphs, device, ran = new_graphs(is_enabled=False)
    graphs.prepare(["x"])
    graphs.run("x")
    graphs.run("a")
    graphs.run("a")
    assert (ran, device.said, graphs.num_captured) == (["x", "x", "a", "a"], [], 0)
