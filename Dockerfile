# CPU:  docker build --tag dmd .
# CUDA: docker build --tag dmd:cuda --build-arg BASE=nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04 .
ARG BASE=python:3.11-bookworm
# hadolint ignore=DL3006
FROM ${BASE}

# openssh and pdsh start ranks on other hosts; iproute2 is for the tests; a compiler is DeepSpeed's and Triton's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        g++ git iproute2 make openssh-server pdsh python3 python3-dev python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/dmd
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY cluster cluster
COPY data_shards data_shards
COPY dmd dmd
COPY launch launch
RUN pip install --no-cache-dir --constraint constraints.txt '.[ray,remote,optuna,csd,extract,track]'

WORKDIR /work
ENTRYPOINT ["dmd"]
CMD ["--help"]
