# One image for every process of freshrank; the command says which: docker run freshrank join --config configs/compose.yaml
FROM python:3.11-slim-bookworm AS wanted
COPY pyproject.toml .
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > wanted.txt

# Made again when versions change, not when the rest of the project does.
FROM python:3.11-slim-bookworm AS dependencies
# An index of CPU builds of PyTorch for pip; without one pip takes the CUDA build, several GB.
ARG TORCH_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# pip stays outside: what is not in the environment needs no update.
RUN python -m venv --without-pip /opt/freshrank
WORKDIR /src
COPY constraints.txt .
RUN pip --python /opt/freshrank/bin/python install -c constraints.txt torch \
    ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"}
COPY --from=wanted wanted.txt .
RUN pip --python /opt/freshrank/bin/python install -c constraints.txt -r wanted.txt
# Headers and static libraries: nothing is compiled where there is no compiler.
RUN cd /opt/freshrank/lib/python3.11/site-packages && rm -rf torch/include torch/share pyarrow/include pyarrow/src

FROM python:3.11-slim-bookworm AS wheel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY stream stream
COPY model model
COPY utility_blender utility_blender
COPY ranker ranker
COPY sim sim
COPY freshrank freshrank
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
ARG REVISION=""
LABEL org.opencontainers.image.title="freshrank" \
      org.opencontainers.image.description="Streaming online-learning recommender" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$REVISION"
# The dependencies are a layer of their own, so that a new release of the code is a small one.
COPY --from=dependencies /opt/freshrank /opt/freshrank
# Any user in group 0 may write the checkpoints: a volume mounted there takes owner and mode from here.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/freshrank/bin/python install --no-cache-dir --no-index --no-deps --root-user-action=ignore /wheels/*.whl \
 && install -d -o 10001 -g 0 -m 2775 /var/lib/freshrank
COPY --chmod=0755 docker/healthy /usr/local/bin/healthy
WORKDIR /app
COPY configs configs
# The root file system may be read-only and the user any: caches go to /tmp, and nobody is looked up in /etc/passwd.
ENV PATH=/opt/freshrank/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp USER=freshrank TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    OMP_NUM_THREADS=1 MALLOC_ARENA_MAX=2
USER 10001:0
ENTRYPOINT ["freshrank"]
CMD ["--help"]
