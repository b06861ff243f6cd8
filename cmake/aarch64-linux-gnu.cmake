# Cross compiling for 64-bit Arm, with the compiler of Debian and Ubuntu (g++-aarch64-linux-gnu).
# `make jetson` puts together what these name:
#   HSPAN_CROSS_TOOLKIT  a CUDA toolkit that runs here and whose lib64/ is the device's
#   HSPAN_CROSS_SYSROOT  a folder with usr/include and usr/lib/aarch64-linux-gnu of the C++ runtime's libraries
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)

set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_STRIP aarch64-linux-gnu-strip)
find_program(HSPAN_QEMU NAMES qemu-aarch64-static qemu-aarch64)
if(HSPAN_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR
    "${HSPAN_QEMU};-L;/usr/aarch64-linux-gnu;-E;LD_LIBRARY_PATH=${HSPAN_CROSS_SYSROOT}/usr/lib/aarch64-linux-gnu")
endif()

list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES HSPAN_CROSS_TOOLKIT HSPAN_CROSS_SYSROOT)
if(HSPAN_CROSS_SYSROOT) # Debian keeps headers that differ between processors apart
  set(CMAKE_CXX_FLAGS_INIT "-isystem ${HSPAN_CROSS_SYSROOT}/usr/include/aarch64-linux-gnu")
endif()
if(HSPAN_CROSS_TOOLKIT)
  set(CMAKE_CUDA_COMPILER ${HSPAN_CROSS_TOOLKIT}/bin/nvcc)
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  set(CUDAToolkit_ROOT ${HSPAN_CROSS_TOOLKIT})
  foreach(kind SHARED EXE MODULE) # CMake takes nvcc's folders for ones that the host compiler knows too
    set(CMAKE_${kind}_LINKER_FLAGS_INIT "-L${HSPAN_CROSS_TOOLKIT}/lib64")
  endforeach()
  if(NOT EXISTS ${HSPAN_CROSS_TOOLKIT}/lib64/libcudart_static.a)
    set(CMAKE_CUDA_FLAGS_INIT "--cudart shared") # for the program that CMake tries the compiler with
  endif()
endif()

# Programs run here; headers and libraries are the device's.
set(CMAKE_FIND_ROOT_PATH ${HSPAN_CROSS_SYSROOT} /usr/aarch64-linux-gnu ${HSPAN_CROSS_TOOLKIT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
