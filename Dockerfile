# Baton on NVIDIA GPUs. The torch wheels bring CUDA; the host needs only its driver and the NVIDIA container toolkit.
#
#   docker build -t baton .
#   docker run --gpus all --ipc=host -v "$PWD/runs:/baton/runs" baton ./run.sh recipes/lmu_gigaspeech
#
# With flash-attn, which compiles for an hour and needs nvcc:
#   docker build -t baton-flash --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 --build-arg EXTRAS=gpu .
ARG BASE=ubuntu:24.04
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ git ninja-build python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# An active environment of its own: launch.sh, run.sh and test.sh find it and make no .venv.
ENV VIRTUAL_ENV=/opt/baton PATH=/opt/baton/bin:$PATH DS_BUILD_OPS=0 PYTHONUNBUFFERED=1
WORKDIR /baton
COPY constraints.txt pyproject.toml ./
RUN python3 -m venv /opt/baton \
    && grep '^torch==' constraints.txt | pip install --no-cache-dir -r /dev/stdin \
    && grep -v '^torchaudio==' constraints.txt | pip install --no-cache-dir -r /dev/stdin \
    && grep '^torchaudio==' constraints.txt | pip install --no-cache-dir --no-deps -r /dev/stdin

ARG EXTRAS=
RUN if [ "${EXTRAS}" = gpu ]; then \
        MAX_JOBS=8 pip install --no-cache-dir --no-build-isolation 'flash-attn>=2.8,<3'; \
    elif [ -n "${EXTRAS}" ]; then \
        echo "EXTRAS=${EXTRAS}: the only extra of this image is gpu" >&2; exit 1; \
    fi

COPY . .
RUN python -m launchers.here.environment dev
USER 1000
CMD ["./launch.sh", "--help"]
