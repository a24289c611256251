# Cuts the synapses of one request out of their volume in N jobs, and merges them: the same data set, bit for bit, as
# one job makes. Notebook 01 writes the request; finished stacks are kept, so that a killed run is simply run again.
#
#   .venv/bin/snakemake -s workflow/extraction.smk --config request=FOLDER/work/request.json shards=8 --cores 4
#   ... and with --workflow-profile workflow/profiles/slurm on a cluster whose nodes share the folder

import sys
from pathlib import Path

REQUEST = Path(config["request"]).resolve()
SHARDS = int(config.get("shards", 4))
FOLDER = REQUEST.parent.parent


rule merged:
    input:
        expand(str(REQUEST.parent / "shards" / "{shard}.of-{shards}.done"), shard=range(SHARDS), shards=SHARDS),
    output:
        str(FOLDER / "dataset.json"),
    params:
        python=sys.executable,
        request=str(REQUEST),
    shell:
        "{params.python:q} -m nbhelpers.microns.dataset --request {params.request:q} --merge"


rule shard:
    input:
        str(REQUEST),
    output:
        temp(touch(str(REQUEST.parent / "shards" / "{shard,[0-9]+}.of-{shards,[0-9]+}.done"))),
    params:
        python=sys.executable,
        request=str(REQUEST),
    threads: 1
    resources:
        mem_mb=2000,
        runtime=600,
    shell:
        "{params.python:q} -m nbhelpers.microns.dataset --request {params.request:q}"
        " --shard {wildcards.shard} --shards {wildcards.shards}"
