"""One table over all nodes and VMs."""

import json

from pxsched import output
from pxsched.cluster import status, text, view
from pxsched.cluster.known import Known


def of(cluster, name="pve1"):
    return status.of(view.look(cluster.root(name)))


def test_every_node_and_every_vm_is_in_it(pair, run):
    pair.settings('[vm.100]\nclass = "dedicated"\n')
    pair.vm("pve1", 100, "name: db\ncores: 4\n", running=True)
    pair.vm("pve2", 101, "name: web\ncores: 2\n", running=True)
    pair.vm("pve2", 102, "cores: 2\n")
    pair.publish("pve2")
    code, out, _ = run(pair, "pve1", "cluster", "status")
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    assert rows["pve1"][1:4] == ["online", "128", "4"] and rows["pve2"][1:4] == ["online", "128", "0"]
    assert rows["100"][1:3] == ["pve1", "dedicated"] and rows["100"][-1] == "db"
    assert rows["101"][1:3] == ["pve2", "shared"] and rows["102"][1:3] == ["pve2", "stopped"]


def test_it_works_on_a_node_of_its_own(pair, run):
    (pair.pve / "nodes/pve2/qemu-server").rmdir()
    (pair.pve / "nodes/pve2").rmdir()
    code, out, _ = run(pair, "pve1", "cluster", "status", "--json")
    document = json.loads(out)
    assert code == 0 and [node["node"] for node in document["nodes"]] == ["pve1"]
    assert document["schema"] == 1 and document["nodes"][0]["problem"] is None


def test_who_says_nothing_or_nothing_new_is_named(pair, run):
    pair.vm("pve2", 101, "cores: 2\n", running=True)
    out = run(pair, "pve1", "cluster", "status")[1]
    assert "it has published nothing" in out and "101 pve2" in " ".join(out.split()) and " ? " in out
    pair.publish("pve2", at_s=1000.0)
    assert "minutes old: does its timer run?" in run(pair, "pve1", "cluster", "status")[1]


def test_a_vm_that_lies_wider_than_it_must_is_marked(pair):
    """Six CPUs fit in an L3 group of eight; a VM that came late has parts of several."""
    pair.settings('[defaults]\nclass = "dedicated"\n')
    for vmid in range(101, 117):
        pair.vm("pve1", vmid, "cores: 5\n", running=True)
    pair.vm("pve1", 100, "cores: 6\n", running=True)
    rows = {row.vmid: row for row in of(pair).vms}
    assert rows[100].crossing and rows[100].span.groups > 1 and not rows[101].crossing
    lines = [line for line in text.of_status(of(pair), 100) if line[0].split()[:1] == ["100"]]
    assert lines[0][1] is output.Tone.WARN and "L3!" in lines[0][0]


def test_what_is_wanted_of_cpus_is_what_their_vms_want_together(pair):
    pair.settings('[defaults]\ncpus = "10-11"\n')
    for vmid in (100, 101, 102):
        pair.vm("pve1", vmid, "cores: 2\n", running=True)
    rows = of(pair).vms
    assert [row.contention for row in rows] == [1.5] * 3 and all(row.crowded for row in rows)


def test_lines_are_as_wide_as_the_terminal(pair):
    pair.settings('[defaults]\nclass = "dedicated"\nsmt = "isolate"\n')
    pair.vm("pve1", 100, f"name: {'x' * 60}\ncores: 40\n", running=True)
    for width in (80, 100, 200):
        assert max(len(line) for line, _tone in text.of_status(of(pair), width)) <= width


def test_colours_are_for_terminals_and_text_cannot_bring_its_own(monkeypatch, capsys):
    output.say_toned([("name \x1b[31mred", output.Tone.WARN)])
    assert capsys.readouterr().out == "name ?[31mred\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    output.say_toned([("name \x1b[31mred", output.Tone.WARN), ("plain", output.Tone.PLAIN)])
    assert capsys.readouterr().out == "\x1b[33mname ?[31mred\x1b[m\nplain\n"
    monkeypatch.setenv("NO_COLOR", "1")
    output.say_toned([("name", output.Tone.WARN)])
    assert capsys.readouterr().out == "name\n"


def test_a_vm_that_goes_while_we_look_breaks_nothing(pair, run):
    pair.vm("pve1", 100, "cores: 2\n", running=True)
    pair.vm("pve2", 101, "cores: 2\n", running=True)
    pair.publish()
    looked = view.look(pair.root("pve1"))
    assert set(looked.places) == {100, 101}
    (pair.pve / "nodes/pve2/qemu-server/101.conf").unlink()
    assert [row.vmid for row in status.of(looked).vms] == [100]
    assert {*Known(looked).vms} == {100}
