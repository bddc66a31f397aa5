# One image for every process of freshrank; the command says which: docker run freshrank join --config configs/compose.yaml
FROM python:3.11-slim-bookworm AS build
# An index of CPU builds of PyTorch for pip; without one pip takes the CUDA build, several GB.
ARG TORCH_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/freshrank
ENV PATH=/opt/freshrank/bin:$PATH
WORKDIR /src
# Dependencies in layers of their own, so that a change of the code does not install them again.
COPY pyproject.toml constraints.txt ./
RUN pip install -c constraints.txt torch ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"}
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > dependencies.txt \
 && pip install -c constraints.txt -r dependencies.txt
COPY README.md LICENSE ./
COPY stream stream
COPY model model
COPY utility_blender utility_blender
COPY ranker ranker
COPY sim sim
COPY freshrank freshrank
RUN pip install --no-deps .

FROM python:3.11-slim-bookworm
# The folder the trainer checkpoints to must belong to the user before a volume is mounted over it.
RUN useradd --uid 10001 --create-home freshrank && install -d -o freshrank -g freshrank /var/lib/freshrank
COPY --from=build /opt/freshrank /opt/freshrank
WORKDIR /app
COPY configs configs
ENV PATH=/opt/freshrank/bin:$PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
USER freshrank
ENTRYPOINT ["freshrank"]
CMD ["--help"]
