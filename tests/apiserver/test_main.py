"""The API server double as a program of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from apiserver.kube_client import KubeClient
from apiserver.resources import ENDPOINT_SLICES, SERVICES

MAIN = Path(__file__).with_name("main.py")


@pytest.mark.slow
def test_program_serves_many_services_and_does_what_it_is_told(tmp_path: Path) -> None:
    """It serves as many Services as wanted, changes them on command and ends with its input."""
    kubeconfig = tmp_path / "kubeconfig"
    command = [sys.executable, str(MAIN), "--kubeconfig", str(kubeconfig), "--services", "20", "--endpoints", "3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def tell(**order: Any) -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        assert process.stdout.readline().startswith("listening at https://127.0.0.1:")
        with KubeClient.from_file(kubeconfig) as client:
            services = client.request("GET", SERVICES.path("scale"))["items"]
            before = client.request("GET", ENDPOINT_SLICES.path("scale"))
            tell(do="set", service=7, generation=1)
            done = tell(do="churn", rate=1000, seconds=0.1)
            after = client.request("GET", ENDPOINT_SLICES.path("scale"))
            tell(do="empty", service=3)
            tell(do="add", service=20)
            added = client.request("GET", SERVICES.path("scale"))["items"]
            slices = client.request("GET", ENDPOINT_SLICES.path("scale"))["items"]
        assert [len(services), len(before["items"]), len(before["items"][0]["endpoints"])] == [20, 20, 3]
        versions = [int(one["metadata"]["resourceVersion"]) for one in (before, after)]
        assert versions[1] - versions[0] == 102
        assert [one["metadata"]["name"] for one in added[20:]] == ["web-00020"]
        assert [len(slices[number]["endpoints"]) for number in (2, 3, 20)] == [3, 0, 3]
        assert (done["made"], done["generation"]) == (100, 1)
        assert tell(do="requests")[0]["kind"] == "list"
        process.stdin.close()
        assert process.wait(timeout=20) == 0
