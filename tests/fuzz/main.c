/* libFuzzer with Python in it: each input goes to the function of targets.py that FUZZ_TARGET names. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

static PyObject *target;

static PyObject *need(PyObject *object)
{
    if (object == NULL) {
        PyErr_Print();
        abort(); /* libFuzzer keeps the input */
    }
    return object;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    Py_Initialize();
    PyObject *module = need(PyImport_ImportModule("fuzz.targets"));
    target = need(PyObject_GetAttrString(module, getenv("FUZZ_TARGET")));
    return 0;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
    Py_DECREF(need(PyObject_CallFunction(target, "y#", (const char *)data, (Py_ssize_t)size)));
    return 0;
}
