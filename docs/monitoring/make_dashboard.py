"""Makes dashboard.json, Grafana's: python3 docs/monitoring/make_dashboard.py > docs/monitoring/dashboard.json

Model: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

import json

SOURCE = {"type": "prometheus", "uid": "${source}"}
NODE, VM, PLUGIN = "{{instance}}", "{{instance}} VM {{vmid}}", "{{instance}} {{plugin}}"
PASSES = "rate(pxsched_pass_seconds_total{HERE}[10m]) / rate(pxsched_passes_total{HERE}[10m])"
# Title, unit, width (of 24), and what is drawn: expression and legend. {HERE}: the nodes that were chosen.
PANELS = (
    ("Seconds since the last pass", "s", 6, ("time() - pxsched_last_pass_timestamp_seconds{HERE}", NODE)),
    ("VMs without a place", "none", 6, ("pxsched_vms_unplaced{HERE}", NODE)),
    ("Starts refused", "none", 6, ("sum by (instance) (pxsched_vm_starts_refused_total{HERE})", NODE)),
    ("Values the kernel does not take", "none", 6, ("pxsched_knobs_refused{HERE} > 0", PLUGIN)),
    ("CPU time a VM lacks of what it is due", "percentunit", 12, ("pxsched_vm_contention_ratio{HERE}", VM)),
    ("Waiting for a CPU (CPUs)", "none", 12, ("rate(pxsched_vm_wait_seconds_total{HERE}[5m])", VM)),
    ("Running (CPUs)", "none", 12, ("rate(pxsched_vm_run_seconds_total{HERE}[5m])", VM)),
    ("CPUs a VM may use", "none", 12, ("pxsched_vm_cpus{HERE}", f"{VM} ({{{{class}}}})")),
    ("Dedicated CPUs open to others", "none", 12,
     ("pxsched_dedicated_cpus_open{HERE} > 0", f"{VM}: {{{{to}}}}")),
    ("Moves an hour", "none", 12, ("increase(pxsched_moves_total{HERE}[1h])", VM)),
    ("Balloons", "bytes", 12, ("pxsched_vm_balloon_bytes{HERE}", VM),
     ("pxsched_vm_balloon_target_bytes{HERE}", f"{VM}, wanted")),
    ("Turned by somebody else, an hour", "none", 12,
     ("increase(pxsched_knob_drifts_total{HERE}[1h])", PLUGIN)),
    ("Time a pass takes", "s", 12, (PASSES, NODE)),
    ("Version", "none", 12, ("pxsched_build_info{HERE}", f"{NODE} {{{{version}}}}")),
)  # fmt: skip


def panels() -> list[dict[str, object]]:
    found, x, y = [], 0, 0
    for number, (title, unit, width, *drawn) in enumerate(PANELS, 1):
        if x + width > 24:
            x, y = 0, y + 8
        targets = [
            {
                "refId": chr(65 + at),
                "datasource": SOURCE,
                "expr": expr.replace("{HERE}", '{instance=~"$instance"}'),
                "legendFormat": legend,
            }
            for at, (expr, legend) in enumerate(drawn)
        ]
        found.append({
            "id": number, "title": title, "type": "stat" if width == 6 else "timeseries",
            "datasource": SOURCE, "gridPos": {"h": 8, "w": width, "x": x, "y": y}, "targets": targets,
            "fieldConfig": {"defaults": {"unit": unit}, "overrides": []}, "options": {},
        })  # fmt: skip
        x += width
    return found


def dashboard() -> dict[str, object]:
    instances = {
        "name": "instance", "label": "Node", "type": "query", "datasource": SOURCE, "refresh": 2,
        "query": "label_values(pxsched_build_info, instance)", "multi": True, "includeAll": True,
    }  # fmt: skip
    source = {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": "pxsched", "title": "pxsched", "tags": ["proxmox"], "schemaVersion": 38, "version": 1,
        "editable": True, "refresh": "1m", "time": {"from": "now-6h", "to": "now"}, "timezone": "browser",
        "templating": {"list": [source, instances]}, "annotations": {"list": []}, "panels": panels(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
