# make demo   runs the main job on the embedded default
# make test   lint, types and all tests; ComfyUI's too where a ComfyUI is found
# Every target creates .venv from a bare Python and installs what it needs; a second call is fast.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The ComfyUI of the tests: $COMFYUI_PATH, the installation that this pack lies in, or comfy-cli's default folder.
COMFYUI_PATH ?= $(patsubst %/comfy/sd.py,%,$(firstword $(wildcard ../../comfy/sd.py $(HOME)/comfy/ComfyUI/comfy/sd.py)))
export COMFYUI_PATH

# Tests start many processes: each module is compiled once for all of them, also where the environment forbids it.
unexport PYTHONDONTWRITEBYTECODE
test test-library test-graphs: export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/bytecode

.PHONY: demo test test-library test-graphs lint release-check comfyui clean

demo: $(VENV)/.installed
	$(BIN)/python -m diffprivacy demo -o demo-output

# The library's tests compute with one thread; those of the graphs and the page run beside them.
test: lint $(VENV)/.comfyui
	@$(MAKE) --no-print-directory --jobs=2 test-library test-graphs

test-library:
	$(BIN)/python -m pytest --durations=20 tests/library

test-graphs:
	$(BIN)/python -m pytest --durations=20 tests/comfyui tests/browser

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# Before a release: the registry's own checks, what a release must hold, and its notes.
release-check: lint
	$(BIN)/uv tool run --from comfy-cli comfy --skip-prompt node validate
	$(BIN)/python -m testing.release

# For a machine with a network: puts a ComfyUI into ~/comfy/ComfyUI.
comfyui: $(VENV)/.installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python comfy-cli
	$(BIN)/comfy --skip-prompt --workspace $(HOME)/comfy/ComfyUI install --cpu

clean:
	rm -rf $(VENV)

$(VENV)/.uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	touch $@

# ComfyUI needs torch, torchvision and torchaudio of one release; the same torch serves the library.
$(VENV)/.installed: $(VENV)/.uv pyproject.toml requirements.txt tests/requirements-torch.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r tests/requirements-torch.txt -e '.[standalone,test]'
	touch $@

# What the ComfyUI found needs to run in this environment; it is never installed or changed from here.
$(VENV)/.comfyui: $(VENV)/.installed $(wildcard $(COMFYUI_PATH)/requirements.txt)
ifneq ($(COMFYUI_PATH),)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r tests/requirements-torch.txt -r $(COMFYUI_PATH)/requirements.txt
endif
	touch $@
